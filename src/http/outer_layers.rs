//! Layers around everything that answers visitors, refusals included.

use std::convert::Infallible;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{ConnectInfo, Request};
use axum::response::{IntoResponse, Response};
use axum::routing::Route;
use tower::{Layer, Service, service_fn};

use crate::http::real_ip::ConnectionPeer;

type Wrap = Box<dyn FnOnce(Router) -> Router + Send>;

/// Stands for the address that a Unix socket's client does not have.
#[derive(Debug, Clone, Copy)]
struct UnixPeer;

/// Layers of an application that stand outside of the library's own walk.
#[derive(Default)]
pub struct OuterLayers(Vec<Wrap>);

impl OuterLayers {
    /// Puts another layer around all there are.
    pub fn push<L>(&mut self, layer: L)
    where
        L: Layer<Route> + Clone + Send + Sync + 'static,
        L::Service: Service<Request> + Clone + Send + Sync + 'static,
        <L::Service as Service<Request>>::Response: IntoResponse + 'static,
        <L::Service as Service<Request>>::Error: Into<Infallible> + 'static,
        <L::Service as Service<Request>>::Future: Send + 'static,
    {
        self.0.push(Box::new(move |router| router.layer(layer)));
    }

    /// A router that walks through all layers to `core`; none if there is no layer.
    ///
    /// The client's address, if it has one, is found in the extensions of the request, as [`ConnectInfo`].
    pub(in crate::http) fn around<F>(
        self,
        core: impl Fn(Request, ConnectionPeer) -> F + Send + Sync + 'static,
    ) -> Option<Router>
    where
        F: Future<Output = Response> + Send + 'static,
    {
        if self.0.is_empty() {
            return None;
        }
        let core = Arc::new(core);
        let service = service_fn(move |mut request: Request| {
            let core = Arc::clone(&core);
            let address = request.extensions_mut().remove::<ConnectInfo<SocketAddr>>();
            let unix = request.extensions_mut().remove::<UnixPeer>();
            let internet = address.map(|ConnectInfo(address)| ConnectionPeer::Internet(address));
            let peer = internet.or(unix.map(|UnixPeer| ConnectionPeer::UnixSocket));
            async move {
                // Without the address a request could be counted for no client: a layer has taken it away.
                let Some(peer) = peer else {
                    return Ok(http::StatusCode::INTERNAL_SERVER_ERROR.into_response());
                };
                Ok::<_, Infallible>(core(request, peer).await)
            }
        });
        let inner = Router::new().fallback_service(service);
        Some(self.0.into_iter().fold(inner, |router, wrap| wrap(router)))
    }
}

/// Sends a request through the layers.
pub(in crate::http) async fn call(
    mut outer: Router,
    mut request: Request<Body>,
    peer: ConnectionPeer,
) -> Response {
    match peer {
        ConnectionPeer::Internet(address) => _ = request.extensions_mut().insert(ConnectInfo(address)),
        ConnectionPeer::UnixSocket => _ = request.extensions_mut().insert(UnixPeer),
    }
    match outer.call(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    }
}

impl fmt::Debug for OuterLayers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("OuterLayers").field(&self.0.len()).finish()
    }
}
