//! systemd, as far as a service knows it.

use std::os::unix::net::UnixDatagram;

use crate::support::fleet::TestFleetBuilder;
use crate::support::wait;

/// systemd, as far as a service knows it.
pub(crate) struct Manager {
    pub(crate) socket: UnixDatagram,
    pub(crate) heard: Vec<String>,
}

impl Manager {
    /// One that is named in the plan's environment.
    pub(crate) fn of(plan: TestFleetBuilder) -> (Self, TestFleetBuilder) {
        let path = plan.folder().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_nonblocking(true).unwrap();
        let plan = plan.set("NOTIFY_SOCKET", &path.display().to_string());
        (Self { socket, heard: Vec::new() }, plan)
    }

    pub(crate) fn listen(&mut self) {
        let mut bytes = [0; 4096];
        while let Ok(len) = self.socket.recv(&mut bytes) {
            self.heard.push(String::from_utf8(bytes[..len].to_vec()).unwrap());
        }
    }

    /// Waits for the next message that begins like this, and forgets all before it.
    #[track_caller]
    pub(crate) fn hears(&mut self, start: &str) -> String {
        wait::until_some(&format!("the manager is told {start}"), wait::LONG, || {
            self.listen();
            let at = self.heard.iter().position(|message| message.starts_with(start))?;
            self.heard.drain(..=at).next_back()
        })
    }
}
