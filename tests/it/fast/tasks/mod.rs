//! The queue of tasks, step by step and against a model.

pub(crate) mod fencing;
pub(crate) mod model;
pub(crate) mod queue;
pub(crate) mod steps;
pub(crate) mod wake_ups;
