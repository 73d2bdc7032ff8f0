//! The channel: parcels in order, bounded by count and by bytes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::runtime::Handle;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use super::budget::{Budget, Permit};

/// The other end is gone; what was sent is handed back unsent.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("send over a link whose other end is closed")]
pub struct Closed;

/// A received item. Its bytes count against the link until it is dropped.
#[derive(Debug)]
pub struct Parcel<T> {
    pub item: T,
    _bytes: Permit,
}

/// The sending end. Clones send into the same link.
#[derive(Debug)]
pub struct Sender<T> {
    shared: Arc<Shared>,
    channel: crossbeam_channel::Sender<Slot<T>>,
}

/// The receiving end: exactly one, so that order means something.
#[derive(Debug)]
pub struct Receiver<T> {
    shared: Arc<Shared>,
    channel: crossbeam_channel::Receiver<Slot<T>>,
}

#[derive(Debug)]
struct Slot<T> {
    parcel: Parcel<T>,
    /// Comes back as the parcel leaves the channel, so `try_send` below always finds room.
    _place: OwnedSemaphorePermit,
}

#[derive(Debug)]
struct Shared {
    budget: Budget,
    places: Arc<Semaphore>,
    arrived: Notify,
    receiver_gone: AtomicBool,
}

/// A link that holds at most `capacity_bytes` and `capacity_count` parcels.
pub fn channel<T>(capacity_bytes: usize, capacity_count: usize) -> (Sender<T>, Receiver<T>) {
    let (sender, receiver) = crossbeam_channel::bounded(capacity_count);
    let shared = Arc::new(Shared {
        budget: Budget::new(capacity_bytes),
        places: Arc::new(Semaphore::new(capacity_count)),
        arrived: Notify::new(),
        receiver_gone: AtomicBool::new(false),
    });
    (Sender { shared: Arc::clone(&shared), channel: sender }, Receiver { shared, channel: receiver })
}

impl<T> Sender<T> {
    /// Waits for room, then sends. Cancel-safe: when cancelled, nothing was sent.
    pub async fn send(&self, item: T, size_bytes: usize) -> Result<(), Closed> {
        let place = Arc::clone(&self.shared.places).acquire_owned().await.map_err(|_| Closed)?;
        let bytes = self.shared.budget.take(size_bytes).await;
        if self.shared.receiver_gone.load(Ordering::Acquire) {
            return Err(Closed);
        }
        let slot = Slot { parcel: Parcel { item, _bytes: bytes }, _place: place };
        self.channel.try_send(slot).map_err(|_| Closed)?;
        self.shared.arrived.notify_one();
        Ok(())
    }

    /// The same from a thread of its own. Must not be called on a tokio worker.
    pub fn send_blocking(&self, runtime: &Handle, item: T, size_bytes: usize) -> Result<(), Closed> {
        runtime.block_on(self.send(item, size_bytes))
    }

    /// Whether the receiver is gone.
    pub fn is_closed(&self) -> bool {
        self.shared.receiver_gone.load(Ordering::Acquire)
    }

    /// The byte budget, for the metrics `queue_bytes` and `queue_capacity_bytes`.
    pub fn budget(&self) -> Budget {
        self.shared.budget.clone()
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared), channel: self.channel.clone() }
    }
}

/// The last sender's going is something a waiting receiver must see.
impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        // The crossbeam end has to be gone before the receiver is woken, or it would find the channel still open.
        self.channel = crossbeam_channel::bounded(0).0;
        self.shared.arrived.notify_one();
    }
}

impl<T> Receiver<T> {
    /// The next parcel, `None` once every sender is gone and all is taken. Cancel-safe.
    pub async fn recv(&mut self) -> Option<Parcel<T>> {
        loop {
            match self.channel.try_recv() {
                Ok(slot) => return Some(slot.parcel),
                Err(crossbeam_channel::TryRecvError::Disconnected) => return None,
                Err(crossbeam_channel::TryRecvError::Empty) => self.shared.arrived.notified().await,
            }
        }
    }

    /// What is there now, without waiting.
    pub fn try_recv(&mut self) -> Option<Parcel<T>> {
        self.channel.try_recv().ok().map(|slot| slot.parcel)
    }

    /// The same from a thread of its own: blocks. Must not be called on a tokio worker.
    pub fn recv_blocking(&mut self) -> Option<Parcel<T>> {
        self.channel.recv().ok().map(|slot| slot.parcel)
    }

    /// Blocks for at most `timeout`; `Ok(None)` when it passed, `Err` when every sender is gone and all is taken.
    pub fn recv_timeout(&mut self, timeout: std::time::Duration) -> Result<Option<Parcel<T>>, Closed> {
        match self.channel.recv_timeout(timeout) {
            Ok(slot) => Ok(Some(slot.parcel)),
            Err(crossbeam_channel::RecvTimeoutError::Timeout) => Ok(None),
            Err(crossbeam_channel::RecvTimeoutError::Disconnected) => Err(Closed),
        }
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        self.shared.receiver_gone.store(true, Ordering::Release);
        self.shared.places.close();
        // Parcels still in the channel give their bytes back now, which frees senders that wait for room.
        while self.channel.try_recv().is_ok() {}
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a test owns the tasks it starts")]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn a_parcel_counts_until_it_is_dropped() {
        let (sender, mut receiver) = channel::<u32>(1024, 8);
        sender.send(1, 1024).await.unwrap();
        let parcel = receiver.recv().await.unwrap();
        assert_eq!(sender.budget().used_bytes(), 1024);
        let waiting = sender.send(2, 64);
        tokio::pin!(waiting);
        assert!(tokio::time::timeout(Duration::from_millis(20), &mut waiting).await.is_err());
        drop(parcel);
        waiting.await.unwrap();
        assert_eq!(receiver.recv().await.unwrap().item, 2);
    }

    #[tokio::test]
    async fn what_is_larger_than_the_budget_passes_alone() {
        let (sender, mut receiver) = channel::<u32>(1024, 8);
        sender.send(1, 1 << 30).await.unwrap();
        assert_eq!(receiver.recv().await.unwrap().item, 1);
        sender.send(2, 10).await.unwrap();
    }

    #[tokio::test]
    async fn both_ends_notice_that_the_other_is_gone() {
        let (sender, mut receiver) = channel::<u32>(1024, 8);
        let waiting = tokio::spawn(async move { receiver.recv().await.is_none() });
        tokio::task::yield_now().await;
        drop(sender);
        assert!(waiting.await.unwrap());

        let (sender, receiver) = channel::<u32>(64, 8);
        sender.send(1, 64).await.unwrap();
        let waiting = tokio::spawn(async move { sender.send(2, 64).await });
        tokio::task::yield_now().await;
        drop(receiver);
        assert_eq!(waiting.await.unwrap(), Err(Closed));
    }

    #[test]
    fn a_thread_and_a_task_can_be_joined_either_way() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let handle = runtime.handle().clone();
        let (to_thread, mut in_thread) = channel::<u64>(4096, 4);
        let (to_task, mut in_task) = channel::<u64>(4096, 4);
        let thread = std::thread::spawn(move || {
            while let Some(parcel) = in_thread.recv_blocking() {
                to_task.send_blocking(&handle, parcel.item * 2, 512).unwrap();
            }
        });
        let total = runtime.block_on(async move {
            let feed = async move {
                for number in 0..1000 {
                    to_thread.send(number, 512).await.unwrap();
                }
            };
            let sum = async move {
                let mut total = 0;
                while let Some(parcel) = in_task.recv().await {
                    total += parcel.item;
                }
                total
            };
            tokio::join!(feed, sum).1
        });
        thread.join().unwrap();
        assert_eq!(total, 999_000);
    }
}
