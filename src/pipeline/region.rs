//! Which region a request is served for.

use serde::{Deserialize, Serialize};

use super::ConfigError;
use crate::store::items::Items;

/// Section `[regions]`.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Served when nothing else says one; empty is everywhere.
    pub default: String,
    /// From locations to regions; the first that fits counts.
    pub locations: Vec<Area>,
}

/// A country or a box of coordinates, and its region.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Area {
    pub region: String,
    /// ISO 3166 code, compared without case.
    pub country: Option<String>,
    /// Degrees: south, west, north, east.
    pub bounds: Option<[f64; 4]>,
}

impl Config {
    /// Refuses areas that could never fit, or name no region.
    pub fn check(&self) -> Result<(), ConfigError> {
        for (at, area) in self.locations.iter().enumerate() {
            let refused = |problem| Err(ConfigError::Area { at, problem });
            if area.region.is_empty() {
                return refused("name its region");
            }
            match area.bounds {
                None if area.country.is_none() => {
                    return refused("give a country or bounds = [south, west, north, east]");
                }
                Some([south, west, north, east]) if !(south <= north && west <= east) => {
                    return refused("bounds are [south, west, north, east], each pair ascending");
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Where a request comes from.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Location {
    pub country: Option<String>,
    /// Latitude and longitude in degrees.
    pub point: Option<[f64; 2]>,
}

/// The region that serves a request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Resolved {
    /// Position in [`Items::regions`]; `None` is everywhere.
    pub region: Option<usize>,
    /// What was asked for is not known, so the default serves.
    pub fallback: bool,
}

/// A named region first, then the location, then the user's own, then the default.
pub fn resolve(
    config: &Config,
    items: &Items,
    named: Option<&str>,
    location: Option<&Location>,
    own: Option<&str>,
) -> Resolved {
    let find = |name: &str| items.regions().binary_search_by(|r| r.as_str().cmp(name)).ok();
    let known = |region| Resolved { region: Some(region), fallback: false };
    let default = find(&config.default);
    let asked = named.or_else(|| location.and_then(|at| area(config, at)));
    match asked {
        Some(name) => find(name).map_or(Resolved { region: default, fallback: true }, known),
        None if location.is_some() => Resolved { region: default, fallback: true },
        None => own.and_then(find).map_or(Resolved { region: default, fallback: false }, known),
    }
}

fn area<'a>(config: &'a Config, location: &Location) -> Option<&'a str> {
    let fits = |area: &&Area| {
        let country = match (&area.country, &location.country) {
            (Some(a), Some(b)) => a.eq_ignore_ascii_case(b),
            _ => false,
        };
        let inside = match (area.bounds, location.point) {
            (Some([south, west, north, east]), Some([lat, lon])) => {
                (south..=north).contains(&lat) && (west..=east).contains(&lon)
            }
            _ => false,
        };
        country || inside
    };
    config.locations.iter().find(fits).map(|area| area.region.as_str())
}
