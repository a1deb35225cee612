//! A primary with its replica, watched by three real Sentinels; they end with the value.

use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use crate::support::redis_tcp::{TestRedisTcp, free_port, words};
use crate::support::{server, wait};

/// The name under which the primary is watched.
pub(crate) const SERVICE: &str = "mymaster";

/// Two servers and who watches them.
#[derive(Debug)]
pub(crate) struct TestSentinelSetup {
    /// The first one begins as the primary.
    pub(crate) servers: [TestRedisTcp; 2],
    sentinels: Vec<SentinelProcess>,
}

#[derive(Debug)]
struct SentinelProcess {
    port: u16,
    process: Child,
    _folder: TempDir,
}

impl Drop for SentinelProcess {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl SentinelProcess {
    fn start(primary: u16) -> Self {
        let folder = TempDir::with_prefix("sentinel").unwrap();
        let (file, port) = (folder.path().join("sentinel.conf"), free_port());
        // It gives a server up after half a second, so that a test need not wait for the usual thirty.
        let text = format!(
            "port {port}\nbind 127.0.0.1\ndir {}\nsentinel monitor {SERVICE} 127.0.0.1 {primary} 2\n\
             sentinel down-after-milliseconds {SERVICE} 500\nsentinel failover-timeout {SERVICE} 3000\n",
            folder.path().display()
        );
        std::fs::write(&file, text).unwrap();
        let mut command = server::program();
        command.arg(&file).arg("--sentinel").stdout(Stdio::null()).stderr(Stdio::null());
        Self { port, process: command.spawn().unwrap(), _folder: folder }
    }

    fn cli(&self, args: &[&str]) -> String {
        let mut command = Command::new("redis-cli");
        let output = command.args(["-p", &self.port.to_string()]).args(args).output().unwrap();
        String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
    }
}

impl TestSentinelSetup {
    /// All of them know each other.
    pub(crate) fn start() -> Self {
        let primary = TestRedisTcp::plain();
        let of = primary.port.to_string();
        let replica = TestRedisTcp::start(|port, _| {
            words(&["--port", &port.to_string(), "--replicaof", "127.0.0.1", &of])
        });
        let sentinels: Vec<_> = (0..3).map(|_| SentinelProcess::start(primary.port)).collect();
        wait::until("the Sentinels know each other and both servers", wait::LONG, || {
            sentinels.iter().all(|sentinel| {
                let reply = sentinel.cli(&["SENTINEL", "MASTER", SERVICE]);
                let lines: Vec<_> = reply.lines().collect();
                let is = |name: &str, value: &str| lines.windows(2).any(|pair| pair == [name, value]);
                is("num-other-sentinels", "2") && is("num-slaves", "1") && is("flags", "master")
            })
        });
        wait::until("the replica follows", wait::LONG, || {
            replica.info("replication", "master_link_status") == "up"
        });
        Self { servers: [primary, replica], sentinels }
    }

    /// Its URL, which names all Sentinels.
    pub(crate) fn url(&self) -> String {
        let hosts: Vec<_> = self.sentinels.iter().map(|one| format!("127.0.0.1:{}", one.port)).collect();
        format!("redis-sentinel://{}/{SERVICE}", hosts.join(","))
    }

    /// Ends one Sentinel.
    pub(crate) fn lose_sentinel(&mut self) {
        self.sentinels.remove(0);
    }

    /// The port of the primary as the Sentinels have it.
    pub(crate) fn primary(&self) -> String {
        let reply = self.sentinels[0].cli(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE]);
        reply.lines().nth(1).unwrap_or_default().to_owned()
    }
}
