//! Who sent a request to the dashboard, and by which listener.

use http::request::Parts;

use crate::http::admin::peer::AdminPeer;
use crate::http::dashboard::sources::DashboardSources;
use crate::http::real_ip::{ClientInfo, ClientTransport};
use crate::http::request_scope::RequestScope;

/// A request to the dashboard.
#[derive(Debug, Clone)]
pub(super) struct DashboardRequest {
    /// The client as a subject of limits.
    pub(super) subject: String,
    /// Whether the client used TLS, as far as a trusted proxy says.
    pub(super) secure: bool,
    pub(super) client: Option<ClientInfo>,
    /// Whether it came by the admin listener.
    pub(super) from_admin_listener: bool,
}

impl DashboardRequest {
    pub(super) fn from_parts(sources: &DashboardSources, parts: &Parts) -> Self {
        let admin_peer = parts.extensions.get::<AdminPeer>().map(|AdminPeer(client)| *client);
        let client =
            admin_peer.or_else(|| RequestScope::find(&parts.extensions).map(|scope| scope.state().client));
        Self {
            subject: client.map(|client| client.limit_subject(sources.ipv6_prefix)).unwrap_or_default(),
            secure: client.is_some_and(|client| client.transport == ClientTransport::Tls),
            client,
            from_admin_listener: admin_peer.is_some(),
        }
    }
}
