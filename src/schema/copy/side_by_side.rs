//! Several workers on one task: their work is done by the server, so they only wait.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::task::Poll;

use tokio_util::sync::CancellationToken;

use super::watch::watched;
use super::worker::{Step, Worker};
use super::{CopyOptions, Steps};
use crate::schema::Error;
use crate::schema::dump::Setting;

/// Runs groups of steps with as many workers as the options say, each group in order by one worker, groups in the order
/// given. After an error the others are stopped and awaited.
pub(super) async fn run_groups(
    options: &CopyOptions,
    preamble: &[Setting],
    groups: Vec<Vec<Step>>,
    steps: &Steps,
    stop: &CancellationToken,
) -> Result<(), Error> {
    let stop = stop.child_token();
    let worker_count = options.workers.clamp(1, groups.len().max(1));
    let queue = Mutex::new(VecDeque::from(groups));
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
    let work = async || {
        let worker = Worker::open(options, preamble, &stop).await?;
        worker.set_limits(options).await?;
        while let Some(group) = next() {
            for step in group {
                if stop.is_cancelled() {
                    return Err(Error::Stopped);
                }
                worker.run(&step, steps).await?;
            }
        }
        Ok(())
    };
    let workers = (0..worker_count).map(|_| Box::pin(work())).collect();
    watched(&options.target, steps, all(workers, || stop.cancel())).await
}

/// Until every worker has ended. The first error is the one returned; `on_error` is called at once, to end the others.
pub(super) async fn all<F>(workers: Vec<F>, on_error: impl Fn()) -> Result<(), Error>
where
    F: Future<Output = Result<(), Error>> + Unpin,
{
    let mut running = workers;
    let mut outcome = Ok(());
    poll_fn(|context| {
        running.retain_mut(|worker| match Pin::new(worker).poll(context) {
            Poll::Pending => true,
            Poll::Ready(Ok(())) => false,
            Poll::Ready(Err(error)) => {
                if outcome.is_ok() {
                    outcome = Err(error);
                    on_error();
                }
                false
            }
        });
        if running.is_empty() { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_error_stops_the_others_and_is_told() {
        let stop = CancellationToken::new();
        let worker = async |fails: bool| {
            if fails {
                return Err(Error::DumpEncoding);
            }
            stop.cancelled().await;
            Err(Error::Stopped)
        };
        let workers = [false, true, false].map(|fails| Box::pin(worker(fails)));
        let outcome = all(workers.into(), || stop.cancel()).await;
        assert!(matches!(outcome, Err(Error::DumpEncoding)));
    }
}
