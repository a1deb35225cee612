//! The shipped fleet: the library's command line around the application in `app/`.
mod app;

#[global_allocator]
static ALLOCATOR: regatta::Allocator = regatta::Allocator;

fn main() -> std::process::ExitCode {
    regatta::Fleet::new(app::app).config(regatta::Config::new().defaults(app::DEFAULTS)).run()
}
