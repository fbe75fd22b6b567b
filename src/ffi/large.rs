//! Large tables in memory of their own, in huge pages where the system has them; what one lets go
//! the next one takes.
//!
//! Giving gigabytes back costs later: a virtual machine hands freed pages on to its host in bursts,
//! a third of a second of a core for a gigabyte, and requests wait behind them. So a process that
//! replaces its bundles calls [`keep`] once, and memory that is let go stays with the process, for
//! the next bundle; [`release`] gives it back little by little. Without [`keep`] it goes at once.
//!
//! A table that fits nothing that is held lets others go, as far as they are smaller than it in all:
//! so what is held and what is in use are together no more than two bundles, or a little.

use std::io;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytemuck::Zeroable;
use memmap2::MmapMut;

/// Smaller ones go back to the system at once.
const KEPT_BYTES_MIN: usize = 1 << 20;
/// What is given back at a time is whole huge pages.
const HUGE_PAGE: usize = 2 << 20;

/// `[T]` in huge pages. Dereferences to the slice.
pub struct Large<T> {
    /// None of no elements. `Option` so that dropping can take it.
    map: Option<MmapMut>,
    len: usize,
    element: PhantomData<T>,
}

impl<T: Zeroable + Copy> Large<T> {
    /// `len` zeros.
    ///
    /// # Panics
    /// When the memory is not there, as a vector does.
    pub fn zeros(len: usize) -> Self {
        const { assert!(align_of::<T>() <= 4096, "the alignment of a page") };
        let bytes = len.checked_mul(size_of::<T>()).expect("a size that can be counted");
        let taken = (bytes > 0).then(|| take(bytes));
        let map = taken.map(|taken| {
            match taken.unwrap_or_else(|error| panic!("{bytes} bytes: {error}")) {
                (mut map, Before::Used) => {
                    map[..bytes].fill(0);
                    map
                }
                (map, Before::Zeros) => map,
            }
        });
        Self { map, len, element: PhantomData }
    }
}

impl Large<u8> {
    /// `len` bytes of any value.
    ///
    /// # Errors
    /// When the memory is not there.
    pub(super) fn uncleared(len: usize) -> io::Result<Self> {
        let map = if len == 0 { None } else { Some(take(len)?.0) };
        Ok(Self { map, len, element: PhantomData })
    }
}

impl<T> Deref for Large<T> {
    type Target = [T];
    #[inline]
    fn deref(&self) -> &[T] {
        let start = self.map.as_ref().map_or(std::ptr::dangling(), |map| map.as_ptr().cast());
        // SAFETY: the map begins at a page and holds `len` elements, all zeros (of which `T` is
        // made) or bytes when it was made, and since then whatever was written to them as `T`.
        unsafe { std::slice::from_raw_parts(start, self.len) }
    }
}

impl<T> DerefMut for Large<T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut [T] {
        let map = self.map.as_mut();
        let start = map.map_or(std::ptr::dangling_mut(), |map| map.as_mut_ptr().cast());
        // SAFETY: as in `deref`; the map is this table's alone.
        unsafe { std::slice::from_raw_parts_mut(start, self.len) }
    }
}

impl<T> Default for Large<T> {
    fn default() -> Self {
        Self { map: None, len: 0, element: PhantomData }
    }
}

impl<T: Zeroable + Copy> Clone for Large<T> {
    fn clone(&self) -> Self {
        let mut copy = Self::zeros(self.len);
        copy.copy_from_slice(self);
        copy
    }
}

impl<T: Zeroable + Copy> From<Vec<T>> for Large<T> {
    fn from(values: Vec<T>) -> Self {
        let mut table = Self::zeros(values.len());
        table.copy_from_slice(&values);
        table
    }
}

impl<T> std::fmt::Debug for Large<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Large({} elements)", self.len)
    }
}

impl<T> Drop for Large<T> {
    fn drop(&mut self) {
        if let Some(map) = self.map.take() {
            give(map);
        }
    }
}

// ------------------------------------------------------------------ what is let go

/// Memory that nobody uses, when it is kept.
static HELD: Mutex<Held> = Mutex::new(Held { keep: false, maps: Vec::new() });

struct Held {
    keep: bool,
    maps: Vec<Free>,
}

struct Free {
    map: MmapMut,
    /// From its start; the rest has been given back and would come again as zeros.
    resident: usize,
}

/// What a map held before it was taken.
enum Before {
    Zeros,
    Used,
}

fn held() -> MutexGuard<'static, Held> {
    HELD.lock().unwrap_or_else(PoisonError::into_inner)
}

/// From now on, what is let go stays with the process.
pub fn keep() {
    held().keep = true;
}

/// Gives up to `bytes_max` of what is held and not in use back to the system; how many it gave.
pub fn release(bytes_max: usize) -> usize {
    let mut held = held();
    // Of the largest, so that the others stay whole for a while.
    let largest = held.maps.iter_mut().enumerate().max_by_key(|(_, free)| free.resident);
    let Some((at, free)) = largest else { return 0 };
    let bytes = free.resident.min(bytes_max.next_multiple_of(HUGE_PAGE));
    free.resident -= bytes;
    if free.resident == 0 || !let_go(&free.map, free.resident, bytes) {
        held.maps.swap_remove(at);
    }
    bytes
}

/// Gives pages back; they read as zeros afterwards. Whether that could be done.
fn let_go(map: &MmapMut, from: usize, bytes: usize) -> bool {
    #[cfg(target_os = "linux")]
    {
        let not_needed = memmap2::UncheckedAdvice::DontNeed;
        // SAFETY: the map is private, anonymous and in nobody's use.
        unsafe { map.unchecked_advise_range(not_needed, from, bytes) }.is_ok()
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = (map, from, bytes);
        false
    }
}

/// Memory for `bytes`: what is held of that capacity, or new.
fn take(bytes: usize) -> io::Result<(MmapMut, Before)> {
    let capacity = capacity(bytes);
    let mut held = held();
    let fits = |free: &Free| free.map.len() == capacity;
    if let Some(at) = held.maps.iter().position(fits) {
        return Ok((held.maps.swap_remove(at).map, Before::Used));
    }
    // As much as it takes, but no more: what it lets go is what it does not take from the host.
    let mut left = bytes;
    held.maps.retain(|free| {
        let goes = free.resident <= left;
        left -= if goes { free.resident } else { 0 };
        !goes
    });
    drop(held);
    let map = memmap2::MmapOptions::new().len(capacity).map_anon()?;
    #[cfg(target_os = "linux")]
    if capacity >= HUGE_PAGE
        && let Err(error) = map.advise(memmap2::Advice::HugePage)
    {
        tracing::debug!(%error, "no huge pages");
    }
    Ok((map, Before::Zeros))
}

fn give(map: MmapMut) {
    let mut held = held();
    if held.keep && map.len() >= KEPT_BYTES_MIN {
        let resident = map.len();
        held.maps.push(Free { map, resident });
    }
}

/// Steps of an eighth, so that tomorrow's table fits into the memory of today's. What is not
/// touched takes no memory.
fn capacity(bytes: usize) -> usize {
    if bytes < KEPT_BYTES_MIN {
        return bytes;
    }
    bytes.next_multiple_of((1 << bytes.ilog2()) / 8)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The one test that keeps: what is held is the process's.
    #[test]
    fn what_is_let_go_is_taken_again_cleared_and_given_back_by_and_by() {
        const LEN: usize = 3_000_001;
        keep();
        let mut first = Large::<u32>::zeros(LEN);
        assert!(first.iter().all(|&value| value == 0));
        first.fill(7);
        let place = first.as_ptr();
        drop(first);
        let grown = Large::<u32>::zeros(LEN + LEN / 100);
        assert_eq!(grown.as_ptr(), place, "the memory of the one before");
        assert!(grown.iter().all(|&value| value == 0), "cleared");
        drop(grown);
        let mut given = 0;
        while held().maps.iter().any(|free| free.map.as_ptr().cast() == place) {
            let bytes = release(4 << 20);
            assert!(bytes > 0, "something is held");
            given += bytes;
        }
        assert!(given >= LEN * 4, "{given} bytes");
        let copy = Large::from(vec![1_u8, 2, 3]).clone();
        assert_eq!(&copy[..], [1, 2, 3]);
        assert!(Large::<u64>::default().is_empty());
    }

    #[test]
    fn capacities_hold_what_they_are_for_and_an_eighth_more_at_most() {
        for bytes in [1, 4096, 1 << 20, (1 << 20) + 1, 1_386_528_512, 5_120_000_000] {
            let capacity = capacity(bytes);
            assert!(capacity >= bytes && capacity - bytes <= bytes / 8, "{bytes}: {capacity}");
        }
    }
}
