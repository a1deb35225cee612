//! A cluster: one client with one connection for each node, and the map of hash slots.
//!
//! The client library has a cluster mode of its own. It is not used: there, one dead node ends the connections to all
//! of them, a redirection delays every other call while the map is read, and calls under way on a dropped connection
//! are sent again although they may have been executed. Here each node is maintained like a standalone server
//! (`connection.rs`), a dead one costs only its own slots, and a call is sent again only if a node reported that it did
//! not execute it.

mod discovery;
mod maintain;
mod nodes;
mod one_shot;
mod router;
mod state;

pub(super) use maintain::maintain;
pub(super) use one_shot::OneShotCluster;
pub(super) use router::ClusterRouter;
