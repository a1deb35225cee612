//! What one more worker costs the machine.

use std::fs;

use crate::support::fleet::TestFleetBuilder;
use crate::support::process;
use crate::support::redis::TestRedis;

const MIB: u64 = 1024 * 1024;

/// Where it says `always`, each mapping gets huge pages, asked for or not.
const HUGE_PAGES: &str = "/sys/kernel/mm/transparent_hugepage/enabled";

#[test]
fn a_worker_at_rest_asks_for_no_huge_page_and_holds_less_than_7_mib() {
    let redis = TestRedis::shared();
    let fleet = TestFleetBuilder::on(&redis).workers(2).start();
    assert_eq!(fleet.get("/").status, 200);
    let always = fs::read_to_string(HUGE_PAGES).is_ok_and(|text| text.contains("[always]"));
    for worker in fleet.workers() {
        let maps = fs::read_to_string(format!("/proc/{worker}/smaps")).unwrap();
        let flags: Vec<_> = maps.lines().filter_map(|line| line.strip_prefix("VmFlags:")).collect();
        assert!(!flags.is_empty(), "the kernel tells no flags:\n{maps}");
        // `hg`: it was asked for by madvise(2).
        let asked = flags.iter().filter(|flags| flags.split(' ').any(|flag| flag == "hg")).count();
        assert_eq!(asked, 0, "mappings of worker {worker} with huge pages");
        let private = process::private_memory(worker);
        assert!(always || private < 7 * MIB, "worker {worker} has {private} bytes of its own");
    }
}
