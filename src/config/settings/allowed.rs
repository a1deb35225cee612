//! What several settings allow, as the reference says it.

pub(super) const DURATION: &str = "a duration such as 250ms, 3s, 5m or 24h";
pub(super) const ADDRESSES: &str =
    "addresses such as 0.0.0.0:3000, [::]:3000 or unix:/run/shop.sock, separated by commas";
pub(super) const COUNT: &str = "a number from 1 to 1024";
pub(super) const PERCENT: &str = "a share from 1% to 100%";
pub(super) const REQUESTS: &str = "0 for none, or a number up to 1000000000000";
pub(super) const HANG_KILL: &str = "0 for never, or a duration longer than workers.hang_timeout";
pub(super) const MEMORY: &str = "0 for none, or a size such as 512MiB or 2GiB";
pub(super) const FLAG: &str = "true or false";
pub(super) const MESSAGE: &str = "a size up to 1MiB, such as 16KiB";
pub(super) const SIZE: &str = "a size in bytes such as 65536, 64KiB or 2MiB";
