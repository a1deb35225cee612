//! The request's view: counted at most once, in the visitor's session or ticket and in the total, or not at all.

use crate::config::schema::Create;
use crate::http::error::Error;
use crate::http::error::Refusal;
use crate::http::exchange::Begun;
use crate::http::exchange::Degraded;
use crate::http::exchange::Exchange;
use crate::http::exchange::Failure;
use crate::http::exchange::Origin;
use crate::http::visitor::Visitor;
use crate::redis::begin::SessionMode;
use crate::redis::begin::SessionReply;
use crate::session::cookie::Ticket;

/// A counted view.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::http) struct Visited {
    pub(in crate::http) views: u64,
    pub(in crate::http) total: i64,
    pub(in crate::http) new: bool,
}

impl Exchange {
    /// Counts a view in the visitor's session and in the total. A visitor without one gets a ticket for it, whose view it
    /// is; the session is made when the ticket comes back.
    pub(in crate::http) async fn visit(&self) -> Result<Visited, Error> {
        let mut begun = self.open().await?;
        let counted = self.counted(&mut begun).await;
        counted.map_err(|failure| begun.fail(failure))
    }

    /// As [`Exchange::visit`]; `None`: Redis cannot count, so there is no number, and the request goes on with what is
    /// known of its session. Only for methods that only look: what others do belongs to a view that was counted.
    pub(in crate::http) async fn visit_if_counted(&self) -> Result<Option<Visited>, Error> {
        if !self.only_looks {
            return self.visit().await.map(Some);
        }
        let mut begun = self.begun.lock().await;
        if self.visitor == Visitor::TooManyCookies {
            begun.refusal.get_or_insert(Refusal::TooManyCookies);
        }
        if let Some(refusal) = &begun.refusal {
            return Err(refusal.error());
        }
        let counted = match self.visitor {
            // Whose view it is cannot be told; limits hold all the same.
            Visitor::Unverifiable => self.round_trip(&mut begun, None, &[]).await.map(|_| None),
            _ => self.counted(&mut begun).await.map(Some),
        };
        match counted {
            Ok(Some(visited)) => Ok(Some(visited)),
            Ok(None) => {
                begun.degraded = Some(Degraded::Unknown);
                Ok(None)
            }
            Err(Failure::Away(error)) => {
                Box::pin(self.uncounted(&mut begun, &error)).await;
                Ok(None)
            }
            Err(failure) => Err(begun.fail(failure)),
        }
    }

    async fn counted(&self, begun: &mut Begun) -> Result<Visited, Failure> {
        if let Some(visited) = begun.visited {
            return Ok(visited);
        }
        let counters = &self.core.view;
        let (mut total, mut views) = (None, None);
        if let Some(id) = begun.stored() {
            let arg = self.session_arg(begun, id, SessionMode::Visit, !self.makes_nothing);
            let (reply, sums) = self.round_trip(begun, Some(&arg), counters).await?;
            total = sums.first().copied();
            views = match reply {
                SessionReply::Live { views, .. } => Some(views),
                // As for any other visitor without a session: it is the first of those that can be told apart.
                SessionReply::Rotated => Some(1),
                // The first, be it the ticket's own: this request makes nothing, and does not count.
                SessionReply::Ticket => Some(1),
                _ => None,
            };
            self.found(begun, id, reply).await;
        }
        let unknown = || Failure::Own(Error::Unavailable { retry_after: 1 });
        // Nothing is stored for a first visit: the view is the ticket's.
        let new = views.is_none();
        if new {
            if total.is_none() {
                total = self.round_trip(begun, None, counters).await?.1.first().copied();
            }
            if begun.current.is_none() && self.core.config.session.create == Create::Return {
                self.issue(begun).await?;
            }
        }
        let visited = Visited { views: views.unwrap_or(1), total: total.ok_or_else(unknown)?, new };
        self.core.cell().viewed();
        // What was read before, while Redis was away, is read anew with the view.
        begun.degraded = None;
        begun.visited = Some(visited);
        if new && begun.origin == Origin::Issued {
            // Issued a moment ago, or before, for something else than a view.
            begun.ticket = begun.ticket.map(|ticket| Ticket { viewed: true, ..ticket });
        }
        Ok(visited)
    }
}
