//! The shipped nginx before real fleets.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::support::fleet::TestFleet;
use crate::support::repository::root;
use crate::support::wait;

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
        let (address, process) = serve(folder.path(), &upstream.join("\n"));
        Self { _folder: folder, address, process }
    }
}

impl Drop for TestNginx {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A port that was free a moment ago.
pub(crate) fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// The shipped files with this test's addresses and folder.
pub(crate) fn write_configuration(folder: &Path, listen: SocketAddr, upstream: &str) {
    let text = std::fs::read_to_string(root().join("docker/nginx/nginx.conf")).unwrap();
    let text = text
        .replace("/tmp/", &format!("{}/", folder.display()))
        .replace("listen 8080 ", &format!("listen {listen} "))
        .replace("listen 127.0.0.1:8081", &format!("listen unix:{}/status.sock", folder.display()));
    std::fs::write(folder.join("nginx.conf"), text).unwrap();
    std::fs::write(folder.join("upstream.conf"), upstream).unwrap();
}

pub(crate) fn nginx(folder: &Path) -> Command {
    // Debian keeps it where not everybody's PATH looks.
    let program =
        ["/usr/sbin/nginx", "/usr/local/sbin/nginx"].into_iter().find(|path| Path::new(path).exists());
    let mut command = Command::new(program.unwrap_or("nginx"));
    command.arg("-p").arg(folder).arg("-c").arg(folder.join("nginx.conf"));
    command
}

/// Longest wait for nginx to serve.
const PATIENCE: Duration = Duration::from_secs(10);

/// Starts nginx as one process; on another port if someone else took the first.
pub(crate) fn serve(folder: &Path, upstream: &str) -> (SocketAddr, Child) {
    serve_changed(folder, upstream, &[])
}

/// The same with other words in the configuration: shorter times, for a test that waits for them.
pub(crate) fn serve_changed(folder: &Path, upstream: &str, changes: &[(&str, &str)]) -> (SocketAddr, Child) {
    let end = Instant::now() + PATIENCE;
    loop {
        let address = free_address();
        write_configuration(folder, address, upstream);
        for (word, other) in changes {
            let text = std::fs::read_to_string(folder.join("nginx.conf")).unwrap();
            assert!(text.contains(word), "no {word} in {text}");
            std::fs::write(folder.join("nginx.conf"), text.replace(word, other)).unwrap();
        }
        let _ = std::fs::remove_file(folder.join("status.sock"));
        let mut command = nginx(folder);
        command.args(["-g", "daemon off; master_process off;"]).stdout(Stdio::null());
        let mut process = command.spawn().expect("nginx is installed by `make deps-test`");
        while process.try_wait().unwrap().is_none() {
            if TcpStream::connect(address).is_ok() && process.try_wait().unwrap().is_none() {
                return (address, process);
            }
            assert!(Instant::now() < end, "nginx does not answer");
            wait::pace(Duration::from_millis(5));
        }
        assert!(Instant::now() < end, "nginx does not start");
    }
}
