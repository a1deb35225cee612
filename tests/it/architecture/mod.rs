//! What is held without running anything: files of deployments, the gate's arithmetic.

pub(crate) mod deployment_files;
pub(crate) mod gate;
