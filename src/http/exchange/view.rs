//! The request's view: counted at most once, in the visitor's session and in the total, or not at all.

use crate::http::error::Error;
use crate::http::exchange::Begun;
use crate::http::exchange::Degraded;
use crate::http::exchange::Exchange;
use crate::http::exchange::Failure;
use crate::http::exchange::Origin;
use crate::http::exchange::TOTAL;
use crate::http::visitor::Visitor;
use crate::redis::begin::CounterArg;
use crate::redis::begin::SessionMode;
use crate::redis::begin::SessionReply;
use crate::redis::keys;
use crate::session::cookie;

/// A counted view.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::http) struct Visited {
    pub(in crate::http) views: u64,
    pub(in crate::http) total: i64,
    pub(in crate::http) new: bool,
}

impl Exchange {
    /// Counts a view in the visitor's session, which is made if there is none, and in the total.
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
        let mut counters =
            vec![CounterArg { key: keys::counter(&self.core.config.redis.prefix, TOTAL), by: 1 }];
        let mut total = None;
        if let Some(id) = begun.current {
            let arg = self.session_arg(id, begun.user, SessionMode::Visit, false);
            let (reply, sums) = self.round_trip(begun, Some(&arg), &counters).await?;
            total = sums.first().copied();
            self.found(begun, id, reply).await;
            // The total counted this view already; only the session is missing.
            counters.clear();
        }
        // Whoever comes with an id that was replaced has another session, whose cookie is not to be overwritten.
        let new = begun.current.is_none() && !begun.is_rotated();
        if new {
            let id = cookie::new_id().map_err(|_| Failure::Own(Error::Failed))?;
            let arg = self.session_arg(id, None, SessionMode::Visit, true);
            let (reply, sums) = self.round_trip(begun, Some(&arg), &counters).await?;
            total = total.or(sums.first().copied());
            begun.current = Some(id);
            self.found(begun, id, reply).await;
            begun.origin = Origin::Made;
        }
        let unknown = || Failure::Own(Error::Unavailable { retry_after: 1 });
        let views = match begun.session {
            Some(SessionReply::Live { views, .. }) => views,
            // As for any other visitor without a session: it is the first of those that can be told apart.
            Some(SessionReply::Rotated) => 1,
            _ => return Err(unknown()),
        };
        let visited = Visited { views, total: total.ok_or_else(unknown)?, new };
        self.core.cell().viewed();
        // What was read before, while Redis was away, is read anew with the view.
        begun.degraded = None;
        begun.visited = Some(visited);
        Ok(visited)
    }
}
