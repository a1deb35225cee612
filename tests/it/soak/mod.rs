//! Storms, browsers, long loads: the tests that take longest.

pub(crate) mod browser_dashboard;
pub(crate) mod browser_live;
pub(crate) mod browser_page;
pub(crate) mod saturation;
pub(crate) mod slow_is_not_hung;
pub(crate) mod zero_loss;
