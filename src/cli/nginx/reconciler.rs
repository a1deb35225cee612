//! What a maintained file should hold after each look at Redis. Pure: no file, no clock.

use crate::cli::nginx::upstream::UpstreamServers;

/// Decides by what was seen last.
#[derive(Debug, Default)]
pub(super) struct UpstreamReconciler {
    last: Option<UpstreamServers>,
}

/// Why the hosts stay as they were.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum KeepReason {
    /// No one lives, as far as Redis knows: an empty upstream would not even be a configuration.
    NoInstances,
    /// Redis knows too little yet, and so do we.
    NotYetComplete,
}

impl UpstreamReconciler {
    /// The hosts to be written after a look; `complete` as in `crate::registry::InstanceList`, `written` whether
    /// there is a file already.
    ///
    /// # Errors
    /// Why the file is to stay as it is.
    pub(super) fn reconcile(
        &mut self,
        found: UpstreamServers,
        complete: bool,
        written: bool,
    ) -> Result<&UpstreamServers, KeepReason> {
        let next = match (self.last.take(), complete) {
            (None, false) if written => return Err(KeepReason::NotYetComplete),
            (known, _) if found.is_empty() => {
                self.last = known;
                return Err(KeepReason::NoInstances);
            }
            (_, true) | (None, false) => found,
            // Redis has lost its data: an instance without a heartbeat since then is not gone.
            (Some(mut known), false) => {
                known.extend(found);
                known
            }
        };
        Ok(self.last.insert(next))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::nginx::upstream::upstream_servers;
    use crate::registry::{InstanceRecord, ListedInstance, SlotRecord};

    fn hosts(addresses: &[&str]) -> UpstreamServers {
        let seen = addresses.iter().map(|address| {
            let slots = vec![SlotRecord { state: "ready".into(), ..SlotRecord::default() }];
            let instance =
                InstanceRecord { addresses: vec![(*address).into()], slots, ..InstanceRecord::default() };
            ListedInstance { age_ms: 0, instance }
        });
        upstream_servers(&seen.collect::<Vec<_>>(), "here")
    }

    fn names(reconciled: Result<&UpstreamServers, KeepReason>) -> Result<Vec<String>, KeepReason> {
        reconciled.map(|servers| servers.keys().cloned().collect())
    }

    #[test]
    fn hosts_come_and_go() {
        let mut reconciler = UpstreamReconciler::default();
        assert_eq!(names(reconciler.reconcile(hosts(&["a:1", "b:1"]), true, true)).unwrap(), ["a:1", "b:1"]);
        assert_eq!(names(reconciler.reconcile(hosts(&["b:1", "c:1"]), true, true)).unwrap(), ["b:1", "c:1"]);
    }

    #[test]
    fn the_last_hosts_stay_when_nobody_is_left() {
        let mut reconciler = UpstreamReconciler::default();
        assert_eq!(names(reconciler.reconcile(hosts(&[]), true, true)), Err(KeepReason::NoInstances));
        assert_eq!(names(reconciler.reconcile(hosts(&["a:1"]), true, true)).unwrap(), ["a:1"]);
        assert_eq!(names(reconciler.reconcile(hosts(&[]), true, true)), Err(KeepReason::NoInstances));
        assert_eq!(
            names(reconciler.reconcile(hosts(&["b:1"]), false, true)).unwrap(),
            ["a:1", "b:1"],
            "a is still known"
        );
    }

    #[test]
    fn without_a_file_what_is_known_is_better_than_nothing() {
        let mut reconciler = UpstreamReconciler::default();
        assert_eq!(names(reconciler.reconcile(hosts(&["a:1"]), false, false)).unwrap(), ["a:1"]);
    }

    #[test]
    fn while_redis_is_learning_hosts_only_come() {
        let mut reconciler = UpstreamReconciler::default();
        assert_eq!(
            names(reconciler.reconcile(hosts(&["a:1"]), false, true)),
            Err(KeepReason::NotYetComplete)
        );
        assert_eq!(names(reconciler.reconcile(hosts(&["a:1", "b:1"]), true, true)).unwrap(), ["a:1", "b:1"]);
        assert_eq!(names(reconciler.reconcile(hosts(&["b:1"]), false, true)).unwrap(), ["a:1", "b:1"]);
        assert_eq!(
            names(reconciler.reconcile(hosts(&["b:1", "c:1"]), false, true)).unwrap(),
            ["a:1", "b:1", "c:1"]
        );
        assert_eq!(names(reconciler.reconcile(hosts(&["b:1", "c:1"]), true, true)).unwrap(), ["b:1", "c:1"]);
    }
}
