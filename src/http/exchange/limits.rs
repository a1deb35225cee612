//! The request's limits: what they ask of Redis, and what is remembered of a refusal.

use crate::http::error::Refusal;
use crate::http::exchange::Begun;
use crate::http::exchange::Exchange;
use crate::redis::begin::LimitArg;
use crate::redis::begin::LimitReply;

impl Exchange {
    /// What the request asks of each of its policies.
    pub(super) fn limit_args(&self) -> Vec<LimitArg> {
        self.policies.args(&self.client.subject(), self.visitor.digest())
    }

    /// A limit said no.
    pub(super) fn denied(&self, begun: &mut Begun, limits: Vec<LimitReply>) -> Refusal {
        self.core.cell().limited();
        let refusal = Refusal::Denied(self.policies.headers(&limits));
        begun.limits = Some(limits);
        refusal
    }
}
