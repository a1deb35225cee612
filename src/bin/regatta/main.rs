//! The shipped fleet: the library's command line around the application in `app/`.
mod app;

#[global_allocator]
static ALLOCATOR: regatta::Allocator = regatta::Allocator;

fn main() -> std::process::ExitCode {
    let config = regatta::Config::new().defaults(app::DEFAULTS);
    regatta::Fleet::new(app::app).version(env!("CARGO_PKG_VERSION")).config(config).run()
}
