//! A model that LightGBM itself evaluates, kept loaded: to serve by the reference, to compare with,
//! and as the oracle of contributions.

use std::ffi::{CStr, CString, c_int, c_void};
use std::ptr;

use lightgbm3_sys as sys;

use super::{Error, Layout, Table, check, check_table, enter};

/// A loaded model.
pub struct Predictor {
    handle: sys::BoosterHandle,
    columns: usize,
}

// SAFETY: the handle is not bound to a thread, and every use of it holds the library's lock.
unsafe impl Send for Predictor {}
// SAFETY: as above: no two threads are inside LightGBM at once.
unsafe impl Sync for Predictor {}

/// One thread, so that a request never waits for a pool, and nothing is printed.
const PARAMS: &CStr = c"num_threads=1 verbosity=-1";

impl Predictor {
    /// Loads a model's text, which LightGBM must have written: its reader trusts it.
    ///
    /// # Errors
    /// When LightGBM refuses the text.
    pub fn new(model: &str) -> Result<Self, Error> {
        let text = CString::new(model).map_err(|_| Error::Nul)?;
        let mut predictor = Self { handle: Self::load(&text)?, columns: 0 };
        let classes =
            predictor.count("LGBM_BoosterGetNumClasses", sys::LGBM_BoosterGetNumClasses)?;
        if classes != 1 {
            return Err(Error::Length { what: "classes", found: classes, expected: 1 });
        }
        predictor.columns =
            predictor.count("LGBM_BoosterGetNumFeature", sys::LGBM_BoosterGetNumFeature)?;
        Ok(predictor)
    }

    fn load(text: &CStr) -> Result<sys::BoosterHandle, Error> {
        let _library = enter();
        let mut handle: sys::BoosterHandle = ptr::null_mut();
        let mut rounds: c_int = 0;
        // SAFETY: a NUL-terminated string and two places for the answer.
        check("LGBM_BoosterLoadModelFromString", unsafe {
            sys::LGBM_BoosterLoadModelFromString(text.as_ptr(), &mut rounds, &mut handle)
        })?;
        Ok(handle)
    }

    fn count(
        &self,
        call: &'static str,
        function: unsafe extern "C" fn(sys::BoosterHandle, *mut c_int) -> c_int,
    ) -> Result<usize, Error> {
        let _library = enter();
        let mut count: c_int = 0;
        // SAFETY: a live handle and a place for the answer.
        check(call, unsafe { function(self.handle, &mut count) })?;
        Ok(count as usize)
    }

    /// Writes the raw score of each row of `table` into `out`.
    ///
    /// # Errors
    /// When table, model and `out` differ in size, or LightGBM refuses the call.
    pub fn raw(&self, table: Table, out: &mut [f64]) -> Result<(), Error> {
        self.predict(table, sys::C_API_PREDICT_RAW_SCORE, 1, out)
    }

    /// What each column adds to each row's raw score, and the expected score, row by row:
    /// `columns + 1` values a row.
    ///
    /// # Errors
    /// As [`Self::raw`].
    pub fn contributions(&self, table: Table) -> Result<Vec<f64>, Error> {
        let width = self.columns + 1;
        let mut out = vec![0.0; table.rows.saturating_mul(width)];
        self.predict(table, sys::C_API_PREDICT_CONTRIB, width, &mut out)?;
        Ok(out)
    }

    /// `width` values a row.
    fn predict(&self, table: Table, kind: u32, width: usize, out: &mut [f64]) -> Result<(), Error> {
        let (rows, columns) = check_table(&table)?;
        let same = |what, found, expected| match found == expected {
            true => Ok(()),
            false => Err(Error::Length { what, found, expected }),
        };
        same("columns of the table", table.columns, self.columns)?;
        same("places for the prediction", out.len(), table.rows * width)?;
        let _library = enter();
        let mut written: i64 = 0;
        // SAFETY: `values` holds rows * columns floats and `out` `width` values a row (checked
        // above), which is what LightGBM writes for this kind with one class.
        check("LGBM_BoosterPredictForMat", unsafe {
            sys::LGBM_BoosterPredictForMat(
                self.handle,
                table.values.as_ptr().cast::<c_void>(),
                sys::C_API_DTYPE_FLOAT32 as c_int,
                rows,
                columns,
                c_int::from(table.layout == Layout::Rows),
                kind as c_int,
                0,
                -1,
                PARAMS.as_ptr(),
                &mut written,
                out.as_mut_ptr(),
            )
        })?;
        same("values that LightGBM wrote", written as usize, out.len())
    }
}

impl Drop for Predictor {
    fn drop(&mut self) {
        let _library = enter();
        // SAFETY: the handle was made by LightGBM and is freed only here.
        unsafe { sys::LGBM_BoosterFree(self.handle) };
    }
}
