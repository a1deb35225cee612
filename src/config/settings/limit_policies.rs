//! The fields of a rate limit policy.

use crate::config::setting::settings;
use crate::config::settings::reference_phrases::FLAG;

settings! {
    /// The fields of a policy, which [`crate::config::limits`] reads.
    rows LIMITS {
        /// Whose requests are counted together.
        ///
        /// Whose requests are counted together ([Clients](#clients)). Requests without a session, or with the ticket
        /// for one, count by client, those without a user by session.
        "limits.*.per"("client", "client, session, user, header or global", Reload);
        /// The header that counts; none: client.
        ///
        /// With `per = "header"`: the header whose value counts, such as `x-api-key`; requests without it count by
        /// client.
        "limits.*.header"("", "a header's name such as x-api-key", Reload);
        /// Sustained rate.
        "limits.*.rate"(
            "", "requests per time such as 100/s, 600/min or 5000/h", Reload,
            unset = "`1000/s` for `default`"
        );
        /// Requests at once; twice the rate per second if unset.
        ///
        /// Requests that may come at once.
        "limits.*.burst"("", "a number from 1 to 1000000", Reload, unset = "two seconds' worth");
        /// What one request counts for.
        ///
        /// What one request counts for; a layer or a handler may say otherwise.
        "limits.*.cost"("1", "a number from 1 to the burst", Reload);
        /// Workers draw quota in advance: for subjects that come often, always, never, or always and so much each.
        ///
        /// Workers draw quota in advance, and most requests need no question about this limit: auto: for clients that
        /// come often and have much left, with bursts from 100, and while more comes than is allowed; true or a number:
        /// always, and so much in each worker at most, only for bursts from 100; false: never ([Limits](#limits)).
        "limits.*.prefetch"(
            "auto", "auto, true, false or a number of requests", Reload,
            formerly = &["limits.*.lease"]
        );
        /// Requests under way, instead of a rate.
        ///
        /// Requests under way at the same time; instead of a rate.
        "limits.*.concurrency"("", "a number from 1 to 100000", Reload, formerly = &["limits.*.concurrent"]);
        /// A killed worker's requests end by then.
        ///
        /// The place of a request whose worker was killed is free again after this; living workers renew theirs.
        "limits.*.concurrency_lease"(
            "10s", "a duration from 1s to 5m", Reload,
            formerly = &["limits.*.concurrent_lease"]
        );
        /// Where the policy applies; none: everywhere; state: when state is used.
        ///
        /// Where the policy applies ([Routes](#routes)).
        "limits.*.routes"(
            "", "path prefixes such as /login, separated by commas, with or without state; or layer", Reload,
            unset = "none; `state` for the built-in `default`"
        );
        /// Which methods; none: all.
        ///
        /// Methods it applies to; none: all. `GET` is HEAD, too, which the same handlers answer.
        "limits.*.methods"("", "methods such as POST, separated by commas", Reload);
        /// What happens without Redis.
        ///
        /// While Redis is away: local: every worker allows its share of the limit; open: allowed; closed: 503.
        "limits.*.on_redis_down"("local", "local, open or closed", Reload);
        /// What happens to strangers while Redis is nearly full.
        ///
        /// While more than 80 % of Redis's `maxmemory` is used: closed: requests of clients who are not logged in are
        /// answered 503 ([A full Redis](OPERATIONS.md#a-full-redis)).
        "limits.*.on_redis_full"("open", "open or closed", Reload);
        /// With a header: so many times the policy for one client under all values.
        ///
        /// With `per = "header"`: one client may use so many times the policy's rate and burst under all values
        /// together, or values could be invented without end; 0: any number, where something in front has checked them.
        "limits.*.client_factor"("10", "0 for any, or a number up to 1000", Reload);
        /// It counts and says which requests it would deny, and denies none.
        ///
        /// It counts; requests that it would deny are logged and counted, and none is denied or told so.
        "limits.*.shadow"("false", FLAG, Reload);
        /// False: as if the policy were not there.
        "limits.*.enabled"("true", FLAG, Reload);
    }
}
