//! A door's connections that other workers have accepted.

use std::sync::Arc;

use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::worker::accept::Answer;
use crate::worker::accept::Door;
use crate::worker::balance::Balance;

/// Accepts at all of these doors for ever, and takes what other workers pass on; to stop, it is dropped.
pub(super) fn accept_at<A: Answer>(doors: &[Door<A>]) -> JoinSet<()> {
    let mut accepting: JoinSet<()> = doors.iter().map(|door| door.clone().accept()).collect();
    // Any public door will do: they differ in where they listen alone.
    if let Some((door, balance)) = doors.iter().find_map(|door| Some((door, door.balance.clone()?))) {
        accepting.spawn(Arc::clone(&balance).settle());
        accepting.spawn(Arc::clone(&balance).even_out(Arc::clone(&door.hall.connections)));
        accepting.spawn(door.clone().take_passed(balance));
    }
    accepting
}

impl<A: Answer> Door<A> {
    /// Takes for ever what other workers pass on; the caller drops the future to stop.
    ///
    /// # Cancel safety
    /// A connection is either still in the fleet's shared queue or served by a task of its own.
    async fn take_passed(self, balance: Arc<Balance>) {
        loop {
            self.hall.gate.may_accept().await;
            match balance.next().await {
                Ok(stream) => {
                    self.admit_passed(stream);
                    if self.permits.acquire().await.is_err() {
                        return;
                    }
                }
                // What could not be taken out stays in the queue, and another worker takes it if this one cannot soon.
                Err(error) => self.make_room(&error, "cannot take what another worker passes on").await,
            }
        }
    }

    /// The client of one that has ended meanwhile is not known any more, and there is nothing to answer.
    fn admit_passed(&self, stream: TcpStream) {
        if let Ok(peer) = stream.peer_addr() {
            self.admit(stream, peer);
        }
    }

    /// Takes what waits in the fleet's shared queue now; whether there was anything.
    pub(super) fn take_queued(&self) -> bool {
        let mut any = false;
        while let Some(Ok(stream)) = self.balance.as_ref().map(|balance| balance.take()) {
            any = true;
            self.admit_passed(stream);
        }
        any
    }
}
