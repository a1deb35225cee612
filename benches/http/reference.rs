//! What the smallest useful command costs this Redis: a plain `HINCRBY`, sixteen in a pipeline, one hash.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::load::float;
use crate::redis::Server;
use crate::{Outcome, process};

/// Commands sent together: what a busy client without server-side code would do.
const PIPELINE: u64 = 16;

/// How long it is measured: `/proc` counts CPU in hundredths of a second.
const MEASURED: Duration = Duration::from_secs(2);

/// CPU of a server of this program for one `HINCRBY`, microseconds.
pub(crate) fn hincrby_us(program: &Path, folder: &Path) -> Outcome<f64> {
    let server = Server::start(program, folder, false, None)?;
    let mut link = server.connect()?;
    let batch =
        "*4\r\n$7\r\nHINCRBY\r\n$3\r\nh:b\r\n$2\r\n_v\r\n$1\r\n1\r\n".repeat(usize::try_from(PIPELINE)?);
    let (before, begun, mut sent) = (process::cpu_us(&[server.pid()])?, Instant::now(), 0);
    while begun.elapsed() < MEASURED {
        link.pipeline(batch.as_bytes(), usize::try_from(PIPELINE)?)?;
        sent += PIPELINE;
    }
    Ok((process::cpu_us(&[server.pid()])? - before) / float(sent))
}
