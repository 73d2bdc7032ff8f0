//! A budget in bytes.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// One semaphore permit stands for this many bytes, so that budgets beyond 4 GiB fit the semaphore's 32-bit counts.
const UNIT_BYTES: usize = 64;

/// Bytes that may be held at once. Clones share it.
#[derive(Clone, Debug)]
pub struct Budget {
    semaphore: Arc<Semaphore>,
    units: u32,
}

/// Bytes taken from a [`Budget`]; given back on drop.
#[derive(Debug)]
pub struct Permit {
    _units: OwnedSemaphorePermit,
}

impl Budget {
    /// `capacity_bytes` is rounded up to a whole unit of 64 bytes.
    pub fn new(capacity_bytes: usize) -> Self {
        let units = u32::try_from(capacity_bytes.div_ceil(UNIT_BYTES)).unwrap_or(u32::MAX).max(1);
        Self { semaphore: Arc::new(Semaphore::new(units as usize)), units }
    }

    /// Waits until `size_bytes` fit. What is larger than the whole budget is let through alone: it waits for, and takes,
    /// all of it. Cancel-safe.
    pub async fn take(&self, size_bytes: usize) -> Permit {
        let units = self.units_for(size_bytes);
        let permit = Arc::clone(&self.semaphore).acquire_many_owned(units).await;
        Permit { _units: permit.expect("the budget's semaphore is never closed") }
    }

    /// Takes `size_bytes` if they fit now.
    pub fn try_take(&self, size_bytes: usize) -> Option<Permit> {
        let permit = Arc::clone(&self.semaphore).try_acquire_many_owned(self.units_for(size_bytes)).ok()?;
        Some(Permit { _units: permit })
    }

    pub fn used_bytes(&self) -> usize {
        (self.units as usize - self.semaphore.available_permits()) * UNIT_BYTES
    }

    pub fn capacity_bytes(&self) -> usize {
        self.units as usize * UNIT_BYTES
    }

    fn units_for(&self, size_bytes: usize) -> u32 {
        u32::try_from(size_bytes.div_ceil(UNIT_BYTES)).unwrap_or(u32::MAX).clamp(1, self.units)
    }
}
