//! The programs of `examples/`, driven as a program's own tests would drive them: public names only.

#[path = "../../examples/api.rs"]
#[allow(dead_code, reason = "its main is the example's")]
mod api;
#[path = "../../examples/pool.rs"]
#[allow(dead_code, reason = "its main is the example's")]
mod pool;
#[path = "../../examples/upkeep.rs"]
#[allow(dead_code, reason = "its main is the example's")]
mod upkeep;
#[path = "../../examples/views.rs"]
#[allow(dead_code, reason = "its main is the example's")]
mod views;

mod programs;
mod test_app;
