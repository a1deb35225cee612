//! Whether the application's checks let a new generation pass: what fails in its first worker and passes in the old one
//! ends the rollout; pure.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::status::check_result::CheckResult;

/// How long a first worker may take to report its checks, and how long the old worker's are waited for once one fails.
pub(in crate::supervisor) const REPORT_TIMEOUT: Duration = Duration::from_secs(5);

/// How old a result may be when it is reported: the old worker's counts if it was found after the failure.
const RESULT_AGE_MAX: Duration = Duration::from_secs(1);

/// Most checks of one worker that are kept.
const CHECKS_MAX: usize = 256;

/// What one worker has reported.
#[derive(Debug, Default)]
pub(in crate::supervisor) struct CheckReport {
    /// Whether it said that it has checks.
    announced: bool,
    /// The round that is coming in.
    incoming: BTreeMap<String, Option<String>>,
    /// The last whole round.
    results: BTreeMap<String, Option<String>>,
    /// When it came.
    reported_at: Option<Duration>,
    /// Since when each check has failed in every round.
    failing_since: BTreeMap<String, Duration>,
    /// Whether it was logged which failures the rollout does without.
    explained: bool,
}

/// What the checks say of a rollout's first worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::supervisor) enum CheckDecision {
    /// Nothing against it; its failures that the old worker shares, or does not know.
    Passed(Vec<String>),
    /// It is not known yet, and waited for until then.
    Undecided(Duration),
    /// The new generation is no good.
    Failed(String),
}

impl CheckReport {
    /// Takes a line of the status pipe; whether it speaks of checks.
    pub(super) fn receive(&mut self, line: &str, now: Duration) -> bool {
        match line {
            CheckResult::ANNOUNCEMENT => self.announced = true,
            CheckResult::END_LINE => self.finish_round(now),
            _ => {
                let Some(CheckResult { name, failure }) = CheckResult::from_line(line) else { return false };
                if self.incoming.len() < CHECKS_MAX {
                    // Of two checks with one name the one that fails counts.
                    let result = self.incoming.entry(name.into_owned()).or_default();
                    *result = failure.or(result.take());
                }
            }
        }
        true
    }

    fn finish_round(&mut self, now: Duration) {
        self.results = std::mem::take(&mut self.incoming);
        self.reported_at = Some(now);
        let before = std::mem::take(&mut self.failing_since);
        let failing = self.results.iter().filter(|(_, failure)| failure.is_some()).map(|(name, _)| name);
        self.failing_since =
            failing.map(|name| (name.clone(), before.get(name).copied().unwrap_or(now))).collect();
    }

    /// Whether this is the first time that the rollout goes on in spite of failures.
    pub(super) fn explain(&mut self) -> bool {
        !std::mem::replace(&mut self.explained, true)
    }

    /// What these say of a worker that has been READY since then, beside what the old worker reports.
    pub(super) fn judge(&self, old: Option<&Self>, ready_since: Duration, now: Duration) -> CheckDecision {
        if self.reported_at.is_none() {
            return self.judge_silence(old, ready_since + REPORT_TIMEOUT, now);
        }
        let (mut shared, mut undecided) = (Vec::new(), None);
        for (name, since) in &self.failing_since {
            let Some(Some(reason)) = self.results.get(name) else { continue };
            let known = old.filter(|old| old.reported_at.is_some_and(|at| at >= *since + RESULT_AGE_MAX));
            // One failure may be that of a start: the same result is reported again for as long as it is kept.
            let found_once = self.reported_at.is_none_or(|at| at <= *since + RESULT_AGE_MAX);
            match known.map(|old| old.results.get(name)) {
                Some(Some(None)) if found_once && now < *since + REPORT_TIMEOUT => {
                    undecided = undecided.max(Some(*since + REPORT_TIMEOUT));
                }
                Some(Some(None)) => {
                    return CheckDecision::Failed(format!("{reason}; the old worker passes it"));
                }
                Some(Some(Some(_))) => shared.push(format!("{reason}; in the old worker too")),
                Some(None) => shared.push(format!("{reason}; the old worker has no such check")),
                None if now < *since + REPORT_TIMEOUT => {
                    undecided = undecided.max(Some(*since + REPORT_TIMEOUT))
                }
                None => shared.push(format!("{reason}; the old worker does not report")),
            }
        }
        undecided.map_or(CheckDecision::Passed(shared), CheckDecision::Undecided)
    }

    /// It has said nothing of its checks yet: the checks that the old worker ends in time do not end in it.
    fn judge_silence(&self, old: Option<&Self>, until: Duration, now: Duration) -> CheckDecision {
        if self.announced && now < until {
            return CheckDecision::Undecided(until);
        }
        match self.announced && old.is_some_and(|old| old.reported_at.is_some()) {
            true => CheckDecision::Failed(format!(
                "its checks were not done within {} s; the old worker's are",
                REPORT_TIMEOUT.as_secs()
            )),
            false => CheckDecision::Passed(Vec::new()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const READY: Duration = Duration::from_secs(100);
    const SECOND: Duration = Duration::from_secs(1);

    /// Checks, and why they fail.
    type Results<'a> = &'a [(&'a str, Option<&'a str>)];

    /// A worker that reports these failures at these seconds after READY.
    fn report(rounds: &[(u32, Results<'_>)]) -> CheckReport {
        let mut report = CheckReport::default();
        assert!(report.receive("checks", READY));
        for (second, results) in rounds {
            for (name, failure) in *results {
                let line = CheckResult::new(name, failure.map(str::to_owned)).to_line();
                assert!(report.receive(&line, READY));
            }
            assert!(report.receive("checked", READY + *second * SECOND));
        }
        report
    }

    fn judge(new: &CheckReport, old: &CheckReport, second: u32) -> CheckDecision {
        new.judge(Some(old), READY, READY + second * SECOND)
    }

    #[test]
    fn what_fails_in_the_new_worker_only_fails_the_rollout() {
        let sways: Results<'_> = &[("mast", Some("it sways")), ("keel", None)];
        let old = report(&[(1, &[("mast", None), ("keel", None)])]);
        let failed = CheckDecision::Failed("it sways; the old worker passes it".into());
        assert_eq!(judge(&report(&[(0, sways), (2, sways)]), &old, 2), failed);
        let once = report(&[(0, sways), (1, sways)]);
        assert_eq!(judge(&once, &old, 2), CheckDecision::Undecided(READY + REPORT_TIMEOUT), "one run of it");
        assert_eq!(judge(&once, &old, 5), failed, "it does not report again");
        let well = report(&[(0, sways), (2, &[("mast", None), ("keel", None)])]);
        assert_eq!(judge(&well, &old, 2), CheckDecision::Passed(Vec::new()));
    }

    #[test]
    fn what_fails_in_both_or_is_new_does_not() {
        let new = report(&[(0, &[("mast", Some("it sways")), ("sail", Some("it is torn"))])]);
        let old = report(&[(1, &[("mast", Some("it sways"))])]);
        let shared = ["it sways; in the old worker too", "it is torn; the old worker has no such check"];
        assert_eq!(judge(&new, &old, 1), CheckDecision::Passed(shared.map(str::to_owned).to_vec()));
    }

    #[test]
    fn a_result_from_before_the_failure_says_nothing() {
        let new = report(&[(1, &[("mast", Some("it sways"))])]);
        let old = report(&[(1, &[("mast", None)])]);
        assert_eq!(judge(&new, &old, 1), CheckDecision::Undecided(READY + 6 * SECOND));
        let later = CheckDecision::Passed(vec!["it sways; the old worker does not report".into()]);
        assert_eq!(judge(&new, &old, 6), later);
        assert_eq!(new.judge(None, READY, READY + 6 * SECOND), later, "a release without checks");
    }

    #[test]
    fn a_failure_that_is_over_is_forgotten() {
        let failing: Results<'_> = &[("mast", Some("it sways"))];
        let new = report(&[(0, failing), (1, &[("mast", None)])]);
        let old = report(&[(2, &[("mast", None)])]);
        assert_eq!(judge(&new, &old, 2), CheckDecision::Passed(Vec::new()));
        let again = report(&[(0, failing), (1, failing)]);
        assert_eq!(
            judge(&again, &report(&[(1, &[("mast", None)])]), 1),
            judge(&report(&[(0, failing)]), &old, 2)
        );
    }

    #[test]
    fn checks_that_are_announced_are_waited_for() {
        let (silent, old) = (report(&[]), report(&[(1, &[])]));
        assert_eq!(judge(&silent, &old, 4), CheckDecision::Undecided(READY + REPORT_TIMEOUT));
        assert!(matches!(judge(&silent, &old, 5), CheckDecision::Failed(_)));
        assert_eq!(judge(&silent, &silent, 5), CheckDecision::Passed(Vec::new()), "the machine is slow");
        let none = CheckReport::default();
        assert_eq!(judge(&none, &old, 0), CheckDecision::Passed(Vec::new()), "it has no checks");
    }

    #[test]
    fn a_flood_of_names_is_bounded_and_one_failure_of_a_name_counts() {
        let mut flood = CheckReport::default();
        for number in 0..10_000 {
            flood.receive(&CheckResult::new(&number.to_string(), None).to_line(), READY);
        }
        assert_eq!(flood.incoming.len(), CHECKS_MAX);
        let twice = report(&[(0, &[("mast", Some("it sways")), ("mast", None)])]);
        assert_eq!(twice.results["mast"].as_deref(), Some("it sways"));
        assert!(!flood.receive("ready", READY) && !flood.receive("check nonsense", READY));
    }
}
