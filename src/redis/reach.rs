//! A connection for work that is done once: to the server, or to all nodes of a cluster.

use crate::config::schema::Mode;
use crate::redis::Inner;
use crate::redis::caller::Caller;
use crate::redis::cluster::Visit;
use crate::redis::error::Error;
use crate::redis::library::Form;
use crate::redis::link::Link;

/// Whatever there is to connect to; its connections end with this value.
pub(super) enum Reach {
    /// The one server.
    One(Link),
    /// Every node.
    All(Visit),
}

impl Reach {
    /// Connects once.
    ///
    /// # Errors
    /// As [`Link::open`].
    pub(super) async fn open(inner: &Inner) -> Result<Self, Error> {
        match inner.endpoint.cluster() {
            None => Link::open(inner, None).await.map(Self::One),
            Some(seeds) => Visit::open(inner, seeds).await.map(Self::All),
        }
    }

    /// A caller with the patience of set-up.
    pub(super) fn patient(&self) -> Caller {
        match self {
            Self::One(link) => link.patient(),
            Self::All(visit) => visit.patient(),
        }
    }

    /// Finds out how code is called there.
    pub(super) async fn form(&self, wanted: Mode) -> Result<Form, Error> {
        match self {
            Self::One(link) => link.form(wanted).await,
            Self::All(visit) => Ok(visit.form()),
        }
    }
}
