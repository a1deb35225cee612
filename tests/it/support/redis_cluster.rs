//! A real cluster: three primaries that share the slots, and a replica of the first; it ends with the value.

use std::path::Path;

use crate::support::redis_tcp::{TestRedisTcp, free_port, words};
use crate::support::wait;

/// Slots of a cluster.
const SLOTS: u16 = 16384;

/// Its nodes; the last one is the replica.
#[derive(Debug)]
pub(crate) struct TestRedisCluster {
    pub(crate) nodes: Vec<TestRedisTcp>,
}

fn node(port: u16, _: &Path) -> Vec<String> {
    // A node that is silent for a second is given up: failovers must not take a test's whole patience.
    words(&[
        "--port",
        &port.to_string(),
        "--cluster-port",
        &free_port().to_string(),
        "--cluster-enabled",
        "yes",
        "--cluster-node-timeout",
        "1000",
        "--cluster-require-full-coverage",
        "no",
        "--repl-diskless-sync-delay",
        "0",
    ])
}

impl TestRedisCluster {
    /// A cluster that serves all slots.
    pub(crate) fn start() -> Self {
        let nodes: Vec<_> = (0..4).map(|_| TestRedisTcp::start(node)).collect();
        let cluster = Self { nodes };
        for (index, node) in cluster.nodes.iter().enumerate() {
            node.cli(&["CLUSTER", "SET-CONFIG-EPOCH", &(index + 1).to_string()]);
            let (port, bus) = (cluster.nodes[0].port.to_string(), cluster.bus(0));
            node.cli(&["CLUSTER", "MEET", "127.0.0.1", &port, &bus]);
        }
        for (index, node) in cluster.primaries().iter().enumerate() {
            let (first, last) = share(index);
            let range = [first.to_string(), last.to_string()];
            assert_eq!(node.cli(&["CLUSTER", "ADDSLOTSRANGE", &range[0], &range[1]]), "OK");
        }
        let first = cluster.nodes[0].cli(&["CLUSTER", "MYID"]);
        wait::until("the nodes know each other", wait::LONG, || {
            cluster.nodes.iter().all(|node| node.cli(&["CLUSTER", "INFO"]).contains("cluster_known_nodes:4"))
        });
        wait::until("the replica has its primary", wait::LONG, || {
            cluster.nodes[3].cli(&["CLUSTER", "REPLICATE", &first]) == "OK"
        });
        cluster.wait_until_healthy();
        cluster
    }

    /// Waits until every living node says that all is well and the replica follows.
    pub(crate) fn wait_until_healthy(&self) {
        wait::until("the cluster is well", wait::LONG, || {
            self.nodes.iter().all(|node| {
                let info = node.cli(&["CLUSTER", "INFO"]);
                info.contains("cluster_state:ok") && info.contains("cluster_slots_ok:16384")
            })
        });
        wait::until("the replica follows", wait::LONG, || {
            self.nodes[3].info("replication", "master_link_status") == "up"
        });
    }

    fn bus(&self, node: usize) -> String {
        let nodes = self.nodes[node].cli(&["CLUSTER", "NODES"]);
        let own = nodes.lines().find(|line| line.contains("myself")).unwrap();
        let address = own.split(' ').nth(1).unwrap();
        address.split('@').nth(1).unwrap().split(',').next().unwrap().to_owned()
    }

    pub(crate) fn primaries(&self) -> &[TestRedisTcp] {
        &self.nodes[..3]
    }

    /// Its URL, which names two of its nodes.
    pub(crate) fn url(&self) -> String {
        format!("redis-cluster://127.0.0.1:{},127.0.0.1:{}", self.nodes[1].port, self.nodes[0].port)
    }

    /// The node that serves a key's slot now.
    pub(crate) fn owner(&self, key: &str) -> usize {
        let slot = self.slot(key);
        self.nodes.iter().position(|node| serves(node, &slot)).unwrap()
    }

    /// A key's slot.
    pub(crate) fn slot(&self, key: &str) -> String {
        self.nodes[0].cli(&["CLUSTER", "KEYSLOT", key])
    }

    /// Every key of every primary.
    pub(crate) fn keys(&self) -> Vec<String> {
        let of = |node: &TestRedisTcp| node.cli(&["--scan"]).lines().map(str::to_owned).collect::<Vec<_>>();
        let mut keys: Vec<String> = self.primaries().iter().flat_map(of).collect();
        keys.sort();
        keys
    }

    /// What the owner of `key` answers to a command that begins with it.
    pub(crate) fn query(&self, command: &str, key: &str, rest: &[&str]) -> String {
        let mut args = vec![command, key];
        args.extend(rest);
        self.nodes[self.owner(key)].cli(&args)
    }

    /// Moves a slot with everything in it to another primary, one key after the other, as `redis-cli --cluster` does.
    pub(crate) fn migrate(&self, slot: &str, to: usize, between: impl Fn()) {
        let from = self.nodes.iter().position(|node| serves(node, slot));
        let (from, to) = (&self.nodes[from.unwrap()], &self.nodes[to]);
        let (source, target) = (from.cli(&["CLUSTER", "MYID"]), to.cli(&["CLUSTER", "MYID"]));
        assert_eq!(to.cli(&["CLUSTER", "SETSLOT", slot, "IMPORTING", &source]), "OK");
        assert_eq!(from.cli(&["CLUSTER", "SETSLOT", slot, "MIGRATING", &target]), "OK");
        between();
        loop {
            let keys = from.cli(&["CLUSTER", "GETKEYSINSLOT", slot, "1"]);
            if keys.is_empty() {
                break;
            }
            let port = to.port.to_string();
            let reply = from.cli(&["MIGRATE", "127.0.0.1", &port, "", "0", "5000", "KEYS", &keys]);
            assert!(reply == "OK" || reply == "NOKEY", "{reply}");
            between();
        }
        for node in [to, from] {
            assert_eq!(node.cli(&["CLUSTER", "SETSLOT", slot, "NODE", &target]), "OK");
        }
    }
}

/// Whether a node says that it serves a slot itself.
fn serves(node: &TestRedisTcp, slot: &str) -> bool {
    let nodes = node.cli(&["CLUSTER", "NODES"]);
    let own = nodes.lines().find(|line| line.contains("myself")).unwrap_or_default().to_owned();
    let slot: u16 = slot.parse().unwrap();
    let has = |range: &str| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        match (first.parse::<u16>(), last.parse::<u16>()) {
            (Ok(first), Ok(last)) => (first..=last).contains(&slot),
            _ => false,
        }
    };
    own.contains("master") && own.split(' ').skip(8).any(has)
}

/// First and last slot of the primary with this index.
fn share(index: usize) -> (u16, u16) {
    let third = SLOTS / 3;
    let first = third * u16::try_from(index).unwrap();
    (first, if index == 2 { SLOTS - 1 } else { first + third - 1 })
}
