//! The shipped nginx before real fleets.

use std::net::SocketAddr;
use std::process::Child;

use tempfile::TempDir;

use crate::architecture::deployment_files::root;
use crate::process::operations::nginx;
use crate::support::fleet::TestFleet;

/// An entry of the shipped upstream.
const ENTRY: &str = "server app:3000 resolve";

/// A running nginx with these replicas behind it, or one behind every entry.
pub(crate) struct TestNginx {
    _folder: TempDir,
    pub(crate) address: SocketAddr,
    process: Child,
}

impl TestNginx {
    pub(crate) fn before<'a>(replicas: impl IntoIterator<Item = &'a TestFleet, IntoIter: Clone>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let shipped = std::fs::read_to_string(root().join("docker/nginx/upstream.conf")).unwrap();
        let mut named = replicas.into_iter().cycle();
        // nginx here has no names to look up.
        let lines = shipped.lines().filter(|line| !line.trim().starts_with("resolver"));
        let upstream: Vec<_> = lines
            .map(|line| match line.contains(ENTRY) {
                true => line.replace(ENTRY, &format!("server {}", named.next().unwrap().listen)),
                false => line.to_owned(),
            })
            .collect();
        let (address, process) = nginx::serve(folder.path(), &upstream.join("\n"));
        Self { _folder: folder, address, process }
    }
}

impl Drop for TestNginx {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
