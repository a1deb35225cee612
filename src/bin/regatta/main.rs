//! The shipped fleet.
mod app;

fn main() {
    let _ = app::router;
}
