//! What is held without running anything: files of deployments, the gate's arithmetic, who may build on whom.

pub(crate) mod deployment_files;
pub(crate) mod features;
pub(crate) mod gate;
pub(crate) mod tiers;
