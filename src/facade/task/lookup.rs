//! Questions about one task by its id, for the queue and for handles.

use std::sync::Arc;

use crate::facade::task::error::Error;
use crate::facade::task::status::TaskStatus;
use crate::facade::task::watch::TaskWatch;
use crate::http::services::stream::StreamServices;
use crate::tasks::TaskId;

pub(super) async fn status(services: &StreamServices, id: TaskId) -> Result<Option<TaskStatus>, Error> {
    Ok(services.tasks.status(&id).await?.map(|task| TaskStatus::new(Arc::new(task))))
}

pub(super) async fn watch(services: &StreamServices, id: TaskId) -> Result<TaskWatch, Error> {
    let mut watch = services.tasks.watch(&id).await?;
    let first = watch.next().await.ok_or(Error::NotFound)?;
    Ok(TaskWatch::new(first, watch, services.standalone.clone()))
}
