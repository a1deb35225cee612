//! A form to log in, a page for members, and a way out; no other site can send the forms.
//!
//! `cargo run --example login`, then open <http://localhost:3000/me> and log in as `ann` with the password `ahoy`.

use axum::response::{Html, Redirect};
use axum::routing::{get, post};
use axum::{Form, Router};
use regatta::session::{AuthSession, CsrfToken, RequireLogin, UserId};
use regatta::{Context, Error, Fleet};
use serde::Deserialize;

fn main() -> std::process::ExitCode {
    Fleet::new(app).run()
}

pub(crate) async fn app(_: Context) -> Router {
    Router::new()
        .route("/me", get(me))
        .route("/logout", post(logout))
        .route_layer(RequireLogin::redirect_to("/login"))
        .route("/login", get(form).post(login))
}

#[derive(Deserialize)]
struct Credentials {
    name: String,
    password: String,
    csrf: String,
}

#[derive(Deserialize)]
struct Leave {
    csrf: String,
}

async fn form(csrf: CsrfToken) -> Html<String> {
    Html(format!(
        "<form method=post><input name=name><input name=password type=password>\
         <input name=csrf type=hidden value=\"{csrf}\"><button>Log in</button></form>\n"
    ))
}

async fn login(
    mut auth: AuthSession,
    csrf: CsrfToken,
    Form(sent): Form<Credentials>,
) -> Result<Redirect, Error> {
    csrf.verify(&sent.csrf)?;
    if !is_right(&sent.name, &sent.password).await {
        return Ok(Redirect::to("/login"));
    }
    // The session gets another id in the same step, so a stranger who planted the old one gets nowhere.
    auth.login(&sent.name).await?;
    Ok(Redirect::to("/me"))
}

/// `name` is safe in HTML as long as `is_right` accepts no other: escape it where users choose their names.
async fn me(UserId(name): UserId, csrf: CsrfToken) -> Html<String> {
    Html(format!(
        "<p>You are {name}.</p><form method=post action=/logout>\
         <input name=csrf type=hidden value=\"{csrf}\"><button>Log out</button></form>\n"
    ))
}

async fn logout(mut auth: AuthSession, csrf: CsrfToken, Form(sent): Form<Leave>) -> Result<Redirect, Error> {
    csrf.verify(&sent.csrf)?;
    auth.logout().await?;
    Ok(Redirect::to("/login"))
}

/// Yours: a database and a password hash.
async fn is_right(name: &str, password: &str) -> bool {
    name == "ann" && password == "ahoy"
}
