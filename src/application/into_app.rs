//! What the function given to a fleet may return.

use axum::{BoxError, Router};

use crate::application::app::App;

/// What an application may return: `Router`, [`App`], and a `Result` of either.
///
/// Sealed: no other type implements it.
///
/// ```no_run
/// use axum::Router;
/// use regatta::{App, Context, Fleet};
///
/// async fn app(_: Context) -> Result<App, std::io::Error> {
///     let motto = std::fs::read_to_string("motto.txt")?;
///     Ok(App::new(Router::new().route("/", axum::routing::get(move || async { motto }))))
/// }
///
/// # fn main() -> std::process::ExitCode { Fleet::new(app).run() }
/// ```
pub trait IntoApp: sealed::Sealed {
    #[doc(hidden)]
    fn into_app(self) -> Result<App, BoxError>;
}

mod sealed {
    use axum::{BoxError, Router};

    use crate::application::app::App;

    pub trait Sealed {}
    impl Sealed for Router {}
    impl Sealed for App {}
    impl<T: Sealed, E: Into<BoxError>> Sealed for Result<T, E> {}
}

impl IntoApp for Router {
    fn into_app(self) -> Result<App, BoxError> {
        Ok(App::new(self))
    }
}

impl IntoApp for App {
    fn into_app(self) -> Result<App, BoxError> {
        Ok(self)
    }
}

impl<T: IntoApp, E: Into<BoxError>> IntoApp for Result<T, E> {
    fn into_app(self) -> Result<App, BoxError> {
        self.map_err(Into::into)?.into_app()
    }
}
