//! Where requests wait before they begin, so that a turn of the event loop stays short however many come.
//!
//! A request of HTTP/1 waits unread, in its connection's kernel buffer; one of HTTP/2 waits in its service. A task that
//! runs behind all that is runnable ends a turn: it measures it, lets waiting requests in, and wakes again only while
//! requests wait. Beyond the bounds of [`load_shedder`] waiting requests are refused. No request is overtaken by one that
//! came later. The room does not know connections or HTTP.
//!
//! Everything here runs on the worker's one thread, so loads and stores of its atomics need no order and are never raced.

mod gate;
mod load_shedder;
mod turn_allowance;
mod waiter;

pub(super) use gate::{AdmissionGate, ArrivalOutcome};
pub(super) use waiter::{AdmissionOutcome, AdmissionWaiter};
