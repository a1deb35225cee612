//! What an operator's command and the supervisor say to each other.

pub mod rates;
pub mod status;
pub mod survey;
