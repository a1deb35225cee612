//! The fleet's instances as Redis knows them: one heartbeat an instance; dead ones are dropped by Redis's own clock.
//!
//! Reading needs no server-side code, so that a command that only reads changes nothing on the server.

mod operations;
mod plain;
mod public_form;
mod record;

pub use operations::{libraries, list_instances_one_shot};
pub use record::{
    DOCUMENT_VERSION, InstanceList, InstanceRecord, ListedInstance, MISSED_HEARTBEATS_MAX, SlotRecord,
};
