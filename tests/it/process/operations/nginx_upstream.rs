//! The upstream of all hosts that live: printed, compared, kept in a file, and read by a real nginx.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::support::client::Request;
use crate::support::fleet::{TestFleet, TestFleetBuilder};
use crate::support::nginx;
use crate::support::operate::kill;
use crate::support::parallel_clients::ParallelClients;
use crate::support::redis::TestRedis;
use crate::support::{client, process, wait};

fn plan(redis: &TestRedis) -> TestFleetBuilder {
    TestFleetBuilder::on(redis)
        .set("REGATTA_REDIS__PREFIX", "shared")
        .set("REGATTA_FLEET__HEARTBEAT_INTERVAL", "200ms")
}

/// Everything but the addresses is the same in every file.
fn entries(text: &str) -> Vec<&str> {
    text.lines().map(str::trim).filter(|line| line.starts_with("server ")).collect()
}

/// Waits until the printed upstream has so many entries, two a host.
#[track_caller]
fn printed(plan: &TestFleetBuilder, count: usize) -> String {
    wait::until_some("the upstream has every host", wait::LONG, || {
        let (code, said) = plan.clone().args(&["nginx"]).run();
        // Until then a note stands there too.
        let complete = !said.contains("for a moment only");
        (code == 0 && complete && entries(&said).len() == count).then_some(said)
    })
}

/// A file that is maintained, and what maintains it.
struct Kept {
    folder: TempDir,
    watch: TestFleet,
}

impl Kept {
    fn start(plan: &TestFleetBuilder, reload: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("upstream.conf").display().to_string();
        let reload = reload.replace("FOLDER", &folder.path().display().to_string());
        let words = ["nginx", "--watch", "--output", &file, "--reload", &reload, "--interval", "100ms"];
        let watch = plan.clone().args(&words).spawn();
        Self { folder, watch }
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("upstream.conf")
    }

    fn text(&self) -> String {
        fs::read_to_string(self.file()).unwrap_or_default()
    }

    #[track_caller]
    fn until_lists(&self, fleets: &[&TestFleet]) {
        wait::until("the file lists exactly these hosts", wait::LONG, || {
            let text = self.text();
            let listed = |fleet: &&TestFleet| text.contains(&format!("server {} ", fleet.listen));
            entries(&text).len() == 2 * fleets.len() && fleets.iter().all(listed)
        });
    }

    /// Lines of a file that the reload command writes one to at each run.
    fn reloads(&self) -> usize {
        fs::read_to_string(self.folder.path().join("reloads")).unwrap_or_default().lines().count()
    }
}

#[test]
fn the_upstream_has_every_host_with_its_weight_and_nginx_takes_it() {
    let redis = TestRedis::start();
    let (large, small) = (plan(&redis).workers(3).start(), plan(&redis).workers(1).start());
    let text = printed(large.plan(), 4);
    for (fleet, weight) in [(&large, 3), (&small, 1)] {
        let entry = format!("server {} weight={weight} max_fails=3 fail_timeout=2s;", fleet.listen);
        assert_eq!(entries(&text).iter().filter(|line| **line == entry).count(), 2, "{text}");
    }
    let folder = tempfile::tempdir().unwrap();
    nginx::write_configuration(folder.path(), nginx::free_address(), &text);
    let output =
        nginx::nginx(folder.path()).arg("-t").output().expect("nginx is installed by `make deps-test`");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !said.contains("[warn]"), "{said}\n{text}");
    let (code, other) = small.plan().clone().args(&["nginx", "--upstream", "other"]).run();
    assert!(code == 0 && other.contains("upstream other {\n    zone other 256k;"), "{code}: {other}");
}

#[test]
fn every_run_ends_with_a_code_that_scripts_can_use() {
    let redis = TestRedis::start();
    let fleet = plan(&redis).start();
    printed(fleet.plan(), 2);
    let file = fleet.plan().folder().join("upstream.conf").display().to_string();
    let run = |words: &[&str]| fleet.plan().clone().args(&[&["nginx"], words].concat()).run();
    let expect = |words: &[&str], code: i32, sentence: &str| {
        let (ended, said) = run(words);
        assert!(ended == code && said.contains(sentence), "{words:?}: {ended}: {said}");
    };
    expect(&["--output", &file, "--check"], 1, "is not as it would be written now");
    expect(&["--output", &file], 0, "written");
    expect(&["--output", &file, "--check"], 0, "is as it should be");
    expect(&["--output", &file, "--reload", "exit 3"], 0, "is as it should be");
    fs::write(&file, "something else").unwrap();
    expect(&["--output", &file, "--reload", "exit 3"], 1, "exit status: 3");
    expect(&["--output", "/nowhere/upstream.conf"], 1, "/nowhere/upstream.conf");
    expect(&["--watch"], 64, "--output");
    expect(&["--upstream", "a; b"], 64, "letters, digits");
    let nobody = plan(&redis).set("REGATTA_REDIS__PREFIX", "another").args(&["nginx"]).run();
    assert!(nobody.0 == 69 && nobody.1.contains("no host of the fleet serves"), "{nobody:?}");
    let absent = plan(&TestRedis::absent(&[])).args(&["nginx"]).run();
    assert!(absent.0 == 69 && absent.1.contains("redis.url"), "{absent:?}");
}

/// Whether this machine lets a test have mounts of its own.
fn may_mount() -> bool {
    let tried =
        std::process::Command::new("unshare").args(["--mount", "mount", "--bind", "/", "/mnt"]).output();
    tried.is_ok_and(|output| output.status.success())
}

#[test]
fn a_file_that_is_mounted_by_itself_is_written_in_place() {
    if !may_mount() {
        return;
    }
    let redis = TestRedis::start();
    let fleet = plan(&redis).start();
    printed(fleet.plan(), 2);
    let at = |name: &str| fleet.plan().folder().join(name).display().to_string();
    let (source, file, program) = (at("source.conf"), at("mounted.conf"), fleet.plan().file().display());
    fs::write(&source, "a text that is longer than nothing").unwrap();
    fs::write(&file, "").unwrap();
    let line = format!("mount --bind {source} {file} && exec {program} nginx --output {file}");
    let plan =
        fleet.plan().clone().program("/usr/bin/unshare".as_ref()).args(&["--mount", "sh", "-c", &line]);
    for expected in ["written in place", "is as it should be"] {
        let (code, said) = plan.run();
        assert!(code == 0 && said.contains(expected), "{code}: {said}");
    }
    let written = fs::read_to_string(&source).unwrap();
    assert!(entries(&written).len() == 2 && written.trim_end().ends_with('}'), "{written}");
}

#[test]
fn the_file_follows_the_fleet_and_is_written_only_on_a_change() {
    let redis = TestRedis::start();
    let first = plan(&redis).start();
    let mut kept = Kept::start(first.plan(), "echo reload >> FOLDER/reloads");
    kept.until_lists(&[&first]);
    let mut second = plan(&redis).workers(1).start();
    kept.until_lists(&[&first, &second]);
    assert_eq!(second.stop(), 0);
    kept.until_lists(&[&first]);
    wait::until("each change was followed by one reload", wait::LONG, || kept.reloads() >= 3);
    let (reloads, modified) = (kept.reloads(), fs::metadata(kept.file()).unwrap().modified().unwrap());
    wait::let_pass(Duration::from_secs(1));
    assert_eq!((kept.reloads(), fs::metadata(kept.file()).unwrap().modified().unwrap()), (reloads, modified));
    assert_eq!(kept.watch.stop(), 0, "{}", kept.watch.log());
    assert_eq!(fs::read_dir(kept.folder.path()).unwrap().count(), 2, "nothing is left beside the file");
}

#[test]
fn the_last_good_file_stays_whatever_redis_does() {
    let mut redis = TestRedis::start();
    let (first, second) = (plan(&redis).start(), plan(&redis).start());
    printed(first.plan(), 4);
    let kept = Kept::start(first.plan(), "echo reload >> FOLDER/reloads");
    kept.until_lists(&[&first, &second]);
    wait::until("nginx was told once", wait::LONG, || kept.reloads() == 1);
    let good = kept.text();
    redis.stop();
    let said = |text: &str| wait::until(text, wait::LONG, || kept.watch.log().contains(text));
    said("unchanged: Redis");
    redis.cont();
    redis.kill();
    // Empty: no machine has sent a heartbeat yet.
    redis.restart();
    said("is up to date again");
    kept.until_lists(&[&first, &second]);
    redis.cli(&["FLUSHALL"]);
    // Longer than the fleets need to be known again.
    wait::let_pass(Duration::from_secs(2));
    assert_eq!((kept.text(), kept.reloads()), (good, 1), "{}", kept.watch.log());
}

#[test]
fn a_reload_that_fails_is_told_once_and_tried_again() {
    let redis = TestRedis::start();
    let fleet = plan(&redis).start();
    let kept = Kept::start(fleet.plan(), "echo reload >> FOLDER/reloads; test -e FOLDER/allowed");
    wait::until("it was tried several times", wait::LONG, || kept.reloads() > 3);
    assert_eq!(kept.watch.log_lines("`echo reload").len(), 1, "{}", kept.watch.log());
    fs::write(kept.folder.path().join("allowed"), "").unwrap();
    wait::until("it has succeeded", wait::LONG, || !kept.watch.log_lines("reloaded").is_empty());
    let done = kept.reloads();
    wait::let_pass(Duration::from_millis(500));
    assert_eq!(kept.reloads(), done, "and not once more");
}

/// A real nginx with workers of its own, before whatever the file says.
struct Front {
    address: SocketAddr,
    process: Child,
}

impl Front {
    fn start(kept: &Kept) -> Self {
        let (folder, upstream) = (kept.folder.path(), kept.text());
        let address = nginx::free_address();
        nginx::write_configuration(folder, address, &upstream);
        let mut command = nginx::nginx(folder);
        command.args(["-g", "daemon off; user root;"]).stdout(Stdio::null()).stderr(Stdio::null());
        let mut process = command.spawn().expect("nginx is installed by `make deps-test`");
        wait::until("nginx answers", wait::LONG, || {
            assert_eq!(process.try_wait().unwrap(), None, "nginx ended");
            TcpStream::connect(address).is_ok()
        });
        Self { address, process }
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        // Not SIGKILL: its workers would be left behind.
        process::signal(self.process.id(), Signal::SIGTERM);
        let _ = self.process.wait();
    }
}

#[test]
fn nginx_goes_on_without_a_failed_request_when_a_host_dies_or_comes() {
    let redis = TestRedis::start();
    let (first, mut second) = (plan(&redis).start(), plan(&redis).start());
    printed(first.plan(), 4);
    let kept =
        Kept::start(first.plan(), "kill -HUP $(cat FOLDER/nginx.pid) && echo reload >> FOLDER/reloads");
    kept.until_lists(&[&first, &second]);
    let front = Front::start(&kept);
    wait::until("the first reload", wait::LONG, || kept.reloads() == 1);
    let address = front.address;
    let ask = move || {
        let begun = Instant::now();
        (begun, client::once(address, Request::get("/")).map(|response| response.status))
    };
    let load = ParallelClients::start(4, |_| ask);
    let more = |count: usize| {
        let seen = load.seen();
        wait::until("the load goes on", wait::LONG, || load.seen() >= seen + count);
    };
    more(100);
    kill(&mut second);
    let died = Instant::now();
    kept.until_lists(&[&first]);
    wait::until("nginx was told", wait::LONG, || kept.reloads() == 2);
    let told = Instant::now();
    more(200);
    let third = plan(&redis).start();
    kept.until_lists(&[&first, &third]);
    wait::until("nginx was told again", wait::LONG, || kept.reloads() == 3);
    more(200);
    let served = third.operator("/fleet.json").json()["requests"].as_u64().unwrap();
    let results: Vec<_> = load.stop().into_iter().flatten().collect();
    let failed: Vec<_> = results.iter().filter(|(_, answer)| !matches!(answer, Ok(200))).collect();
    let (total, early, life) = (results.len(), failed.len(), told.duration_since(died));
    eprintln!("{total} requests, {early} failed; nginx was told {life:?} after the death");
    assert!(failed.iter().all(|(begun, _)| *begun < told), "after the reload none fails: {failed:?}");
    // What the dead host had begun may be lost, and each of four clients had one request under way.
    assert!(failed.len() <= 4, "{failed:?}");
    assert!(served > 0, "the new host gets its share");
}
