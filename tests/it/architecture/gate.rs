//! What `make gate` says of figures, and how it reads what callgrind wrote.

#[allow(dead_code, reason = "the gate uses all of it")]
#[path = "../../../benches/gate/profile.rs"]
mod profile;
#[allow(dead_code, reason = "the gate uses all of it")]
#[path = "../../../benches/gate/verdict.rs"]
mod verdict;

use profile::Profile;
use verdict::{Values, Verdict};

/// One figure of a visit beside that of the baseline.
fn judged(figure: &str, before: f64, now: f64, wider: &[(&str, f64)]) -> Verdict {
    let values = |value| Values::from([(figure.to_owned(), value)]);
    let wider = wider.iter().map(|(name, percent)| ((*name).to_owned(), *percent)).collect();
    verdict::compare("visit", &values(before), &values(now), &wider)[0].verdict
}

#[test]
fn a_growth_of_four_per_cent_fails_and_one_of_two_does_not() {
    for figure in ["worker-instructions", "redis-instructions"] {
        assert_eq!(judged(figure, 100_000.0, 104_000.0, &[]), Verdict::Dearer, "{figure}");
        assert_eq!(judged(figure, 100_000.0, 102_000.0, &[]), Verdict::Same, "{figure}");
        assert_eq!(judged(figure, 100_000.0, 98_000.0, &[]), Verdict::Same, "{figure}");
        assert_eq!(judged(figure, 100_000.0, 96_000.0, &[]), Verdict::Cheaper, "{figure}");
    }
}

#[test]
fn one_more_of_what_is_exact_fails() {
    for figure in ["redis-calls", "redis-commands", "redis-reads", "worker-writes"] {
        assert_eq!(judged(figure, 7.02, 8.02, &[]), Verdict::Dearer, "{figure}");
        assert_eq!(judged(figure, 7.02, 7.05, &[]), Verdict::Same, "{figure}");
        assert_eq!(judged(figure, 7.02, 6.02, &[]), Verdict::Cheaper, "{figure}");
    }
    assert_eq!(judged("worker-allocations", 30.0, 31.0, &[]), Verdict::Dearer);
}

#[test]
fn a_tolerance_of_the_baseline_holds_for_its_figure_alone() {
    let wider = [("worker-instructions", 10.0)];
    assert_eq!(judged("worker-instructions", 100_000.0, 109_000.0, &wider), Verdict::Same);
    assert_eq!(judged("worker-instructions", 100_000.0, 111_000.0, &wider), Verdict::Dearer);
    assert_eq!(judged("redis-instructions", 100_000.0, 109_000.0, &wider), Verdict::Dearer);
}

#[test]
fn a_figure_that_the_baseline_lacks_is_never_the_same() {
    assert_eq!(verdict::judge(None, 1.0, verdict::tolerance("redis-calls")), Verdict::New);
}

#[test]
fn what_costs_nothing_costs_no_less_than_nothing() {
    assert_eq!(
        [-7.97, -0.001, -0.0, 0.0, 86.694, 0.005].map(verdict::cost),
        [0.0, 0.0, 0.0, 0.0, 86.69, 0.01]
    );
    let baseline = std::fs::read_to_string(crate::support::repository::root().join("benches/baseline.toml"));
    let negative: Vec<_> =
        baseline.unwrap().lines().filter(|line| line.contains("= -")).map(str::to_owned).collect();
    assert_eq!(negative, [""; 0]);
}

#[test]
fn functions_that_grew_are_named_by_how_much() {
    let before = Values::from([("same".into(), 5.0), ("shrunk".into(), 9.0), ("grown".into(), 10.0)]);
    let now = Values::from([
        ("same".into(), 5.0),
        ("shrunk".into(), 1.0),
        ("grown".into(), 14.0),
        ("new".into(), 8.0),
        ("small".into(), 2.0),
    ]);
    // Five is the least that is known of before, so something that was not known had no more.
    let expected = vec![("grown".to_owned(), 10.0, 14.0), ("new".to_owned(), 5.0, 8.0)];
    assert_eq!(verdict::grown(&before, &now, 5), expected);
    assert_eq!(verdict::grown(&before, &now, 1), expected[..1]);
}

/// As callgrind writes it: names once, then by number; the line after `calls=` is the callee's cost, not the caller's.
const WRITTEN: &str = "\
events: Ir
summary: 60

fn=(1) visit::h0123456789abcdef
10 20
+1 5
cfn=(2) mi_malloc_aligned
calls=3 +4
* 1000
cfn=(3) writev
calls=2 0
* 500
cfn=(4) epoll_wait@@GLIBC_2.3
calls=4 0
* 700

fn=(2)
7 15
cfn=(5) _mi_malloc_generic
calls=3 0
8 30

fn=(5)
cfn=(2)
calls=9 0
8 30
9 20
";

#[test]
fn a_profile_counts_what_a_function_does_itself() {
    let profile = Profile::read(WRITTEN);
    assert_eq!(profile.instructions, 60.0);
    assert_eq!(profile.functions["visit"], 25.0);
    assert_eq!(profile.functions["mi_malloc_aligned"], 15.0);
    assert_eq!(profile.functions["_mi_malloc_generic"], 20.0);
    // The allocator's calls of itself are none.
    assert_eq!(profile.allocations, 3.0);
    assert_eq!((profile.writes, profile.syscalls), (2.0, 6.0));
}

#[test]
fn what_a_stretch_costs_by_itself_drops_out_of_a_request() {
    let read = |count: u32| Profile::read(&format!("fn=(1) visit\n1 {}\nfn=(2) mark\n1 7000\n", 100 * count));
    let one = Profile::per_request(&read(50), &read(10), 40.0);
    assert_eq!((one.instructions, one.functions["visit"], one.functions["mark"]), (100.0, 100.0, 0.0));
}
