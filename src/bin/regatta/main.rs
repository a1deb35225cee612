//! The shipped fleet.
fn main() {}
