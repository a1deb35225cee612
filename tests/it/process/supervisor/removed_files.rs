//! A cleaner of temporary files removes what others find a fleet by: it is put back, and nothing is lost on the way.

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use crate::support::client::{CookieClient, Request};
use crate::support::fleet::{TestFleet, TestFleetBuilder};
use crate::support::parallel_clients::ParallelClients;
use crate::support::redis::TestRedis;
use crate::support::{process, wait};

fn run_dir(fleet: &TestFleet) -> PathBuf {
    fleet.plan().folder().join("run")
}

fn answers(fleet: &TestFleet) -> bool {
    fleet.plan().clone().args(&["status"]).run().0 == 0
}

#[track_caller]
fn come_back(files: &[PathBuf]) {
    wait::until("they are there again", wait::LONG, || files.iter().all(|file| file.exists()));
}

#[test]
fn what_operators_and_the_next_fleet_need_is_put_back() {
    let redis = TestRedis::shared();
    let fleet = TestFleetBuilder::on(&redis).start();
    let run = run_dir(&fleet);
    let files = ["control.sock", "regatta.pid", "workers"].map(|name| run.join(name));
    for _ in 0..2 {
        for file in &files {
            fs::remove_file(file).unwrap();
        }
        // Whatever is missing, the folder is this fleet's.
        let (code, said) = fleet.plan().clone().args(&["serve"]).run();
        assert!(code == 75 && said.contains("in use by the fleet"), "{code} {said}");
        come_back(&files);
        assert!(answers(&fleet));
    }
    assert_eq!(fs::read_to_string(&files[1]).unwrap().trim(), fleet.pid().to_string());
    fs::remove_dir_all(&run).unwrap();
    come_back(&files);
    assert!(answers(&fleet));
    let (code, events) = fleet.plan().clone().args(&["events"]).run();
    assert!(code == 0 && events.contains("run_dir_restored"), "{events}");
    let (code, said) = fleet.plan().clone().args(&["upgrade"]).run();
    assert_eq!(code, 0, "{said}");
    fs::remove_file(&files[0]).unwrap();
    come_back(&files);
    assert!(answers(&fleet), "the next program looks after it too");
}

#[test]
fn what_others_put_in_its_place_is_left_alone_and_said_once() {
    let redis = TestRedis::shared();
    let fleet = TestFleetBuilder::on(&redis).start();
    let socket = run_dir(&fleet).join("control.sock");
    let aside = socket.with_file_name("aside");
    let stranger = UnixListener::bind(&aside).unwrap();
    // At once: an empty place would be filled.
    fs::rename(&aside, &socket).unwrap();
    wait::until("it is said", wait::LONG, || !fleet.log_lines("control.sock in").is_empty());
    stranger.set_nonblocking(true).unwrap();
    wait::let_pass(std::time::Duration::from_secs(2));
    assert_eq!(fleet.log_lines("control.sock in").len(), 1);
    assert!(socket.exists(), "it is not ours to remove");
    fs::remove_file(&socket).unwrap();
    come_back(&[socket]);
    assert!(answers(&fleet));
}

fn other(fleet: &TestFleet, not: u32) -> Option<u32> {
    fleet.others().into_iter().find(|pid| *pid != not)
}

#[test]
fn the_private_redis_gets_its_socket_back_and_no_view_is_lost() {
    let fleet = TestFleetBuilder::new().start();
    let (socket, address) = (fleet.plan().folder().join("data/redis.sock"), fleet.listen);
    let mut visitor = CookieClient::default();
    for views in 1..=5 {
        assert_eq!(visitor.view(fleet.listen).1, views);
    }
    let load = ParallelClients::start(2, |_| {
        let mut visitor = CookieClient::default();
        move || visitor.try_request(address, Request::get("/"))
    });
    let redis = fleet.others()[0];
    fs::remove_file(&socket).unwrap();
    wait::until("another Redis runs", wait::LONG, || other(&fleet, redis).is_some());
    come_back(std::slice::from_ref(&socket));
    let seen = load.seen();
    wait::until("visits go on", wait::LONG, || load.seen() > seen + 20);
    for result in load.stop().into_iter().flatten() {
        assert_eq!(result.expect("every request is answered").status, 200);
    }
    let (_, views) = wait::until_some("the count goes on", wait::LONG, || {
        let response = visitor.try_request(address, Request::get("/")).ok()?;
        response.header("session-state").is_empty().then(|| response.view())
    });
    assert!(views >= 6, "no view is lost: {views}");
    assert_eq!(visitor.view(fleet.listen).1, views + 1);
    assert!(fleet.log_lines("private Redis crashed").is_empty(), "it was told to leave");
}

#[test]
fn a_private_redis_whose_data_is_gone_keeps_it_in_memory() {
    let fleet = TestFleetBuilder::new().start();
    let data = fleet.plan().folder().join("data");
    let mut visitor = CookieClient::default();
    visitor.view(fleet.listen);
    let redis = fleet.others()[0];
    remove_data(&data);
    fs::remove_file(data.join("redis.sock")).unwrap();
    wait::until("it is said", wait::LONG, || {
        !fleet.log_lines("the private Redis has lost its socket").is_empty()
    });
    assert!(process::alive(redis));
    assert_eq!(visitor.view(fleet.listen).1, 2, "those who are connected go on");
}

fn remove_data(data: &Path) {
    let _ = fs::remove_dir_all(data.join("appendonlydir"));
    let _ = fs::remove_file(data.join("appendonly.aof"));
}
