//! The shipped fleet: the library's command line around the application in `app/`.
mod app;

#[global_allocator]
static ALLOCATOR: regatta::Allocator = regatta::Allocator;

fn main() -> std::process::ExitCode {
    regatta::Fleet::new(app::app).defaults(app::DEFAULTS).run()
}
