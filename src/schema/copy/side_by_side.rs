//! Several workers on one task: their work is done by the server, so they only wait.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::sync::{Mutex, PoisonError};
use std::task::Poll;

use tokio_util::sync::CancellationToken;

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
    all((0..worker_count).map(|_| work()).collect(), &stop).await
}

/// Until every worker has ended. The first error cancels `stop` and is the one returned.
async fn all<F>(workers: Vec<F>, stop: &CancellationToken) -> Result<(), Error>
where
    F: Future<Output = Result<(), Error>>,
{
    let mut running: Vec<_> = workers.into_iter().map(Box::pin).collect();
    let mut outcome = Ok(());
    poll_fn(|context| {
        running.retain_mut(|worker| match worker.as_mut().poll(context) {
            Poll::Pending => true,
            Poll::Ready(Ok(())) => false,
            Poll::Ready(Err(error)) => {
                if outcome.is_ok() {
                    outcome = Err(error);
                    stop.cancel();
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
        let outcome = all(vec![worker(false), worker(true), worker(false)], &stop).await;
        assert!(matches!(outcome, Err(Error::DumpEncoding)));
    }
}
