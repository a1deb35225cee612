//! Text of one setting → its value; an error is the reason, without the setting's name.

pub(super) mod address;
pub(super) mod basic;
pub(super) mod bounds;
pub(super) mod choice;
pub(super) mod secret;
