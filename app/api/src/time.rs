//! Points in time as Go prints them: RFC 3339 in JSON, Go's own text in status lines.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A point in wall-clock time, UTC, with nanoseconds. The default is Go's zero time, 1 January of year 1, which stands
/// for "never".
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp {
    /// Seconds since the Unix epoch; negative before.
    seconds: i64,
    /// Nanoseconds, less than a second, added to `seconds`.
    nanos: u32,
}

/// Newtype name of serialized times, by which [`crate::template`] recognises them.
pub(crate) const TIME: &str = "$time";

/// Seconds from year 1 to the Unix epoch.
const ZERO_TIME: i64 = -62_135_596_800;

impl Default for Timestamp {
    fn default() -> Timestamp {
        Timestamp { seconds: ZERO_TIME, nanos: 0 }
    }
}

impl Timestamp {
    /// The time `since_epoch` after the Unix epoch.
    pub fn from_unix(since_epoch: Duration) -> Timestamp {
        Timestamp {
            seconds: i64::try_from(since_epoch.as_secs()).unwrap_or(i64::MAX / 2),
            nanos: since_epoch.subsec_nanos(),
        }
    }

    /// Whether this is Go's zero time.
    pub fn is_zero(self) -> bool {
        self == Timestamp::default()
    }

    /// Go's default text: `2026-11-20 08:53:23.870948071 +0000 UTC`.
    pub fn go_text(self) -> String {
        let (year, month, day) = civil(self.seconds.div_euclid(86_400));
        let (h, m, s) = clock(self.seconds);
        format!("{year:04}-{month:02}-{day:02} {h:02}:{m:02}:{s:02}{} +0000 UTC", fraction(self.nanos))
    }

    /// `2006/01/02 15:04:05`, as in log lines and the version check.
    pub fn slashes(self) -> String {
        let (year, month, day) = civil(self.seconds.div_euclid(86_400));
        let (h, m, s) = clock(self.seconds);
        format!("{year:04}/{month:02}/{day:02} {h:02}:{m:02}:{s:02}")
    }

    /// Nanoseconds within the second.
    pub fn subsec_nanos(self) -> u32 {
        self.nanos
    }
}

/// RFC 3339 with as many digits as needed: `2026-11-20T08:53:05.603859595Z`.
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (year, month, day) = civil(self.seconds.div_euclid(86_400));
        let (h, m, s) = clock(self.seconds);
        write!(f, "{year:04}-{month:02}-{day:02}T{h:02}:{m:02}:{s:02}{}Z", fraction(self.nanos))
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not an RFC 3339 time.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid time: {0:?}")]
pub struct ParseTimestampError(String);

impl FromStr for Timestamp {
    type Err = ParseTimestampError;

    fn from_str(text: &str) -> Result<Timestamp, ParseTimestampError> {
        parse(text).ok_or_else(|| ParseTimestampError(text.to_owned()))
    }
}

fn parse(text: &str) -> Option<Timestamp> {
    let number = |range: std::ops::Range<usize>| -> Option<i64> {
        let digits = text.get(range)?;
        digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok()).flatten()
    };
    let is = |at: usize, c: u8| text.as_bytes().get(at) == Some(&c);
    if !(is(4, b'-') && is(7, b'-') && is(10, b'T') && is(13, b':') && is(16, b':')) {
        return None;
    }
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    let (h, m, s) = (number(11..13)?, number(14..16)?, number(17..19)?);
    if !((1..=12).contains(&month) && (1..=31).contains(&day) && h < 24 && m < 60 && s < 61) {
        return None;
    }
    let mut rest = text.get(19..)?;
    let mut nanos = 0u32;
    if let Some(tail) = rest.strip_prefix('.') {
        let digits = tail.bytes().take_while(u8::is_ascii_digit).count();
        if !(1..=9).contains(&digits) {
            return None;
        }
        nanos = tail[..digits].parse::<u32>().ok()? * 10u32.pow(9 - digits as u32);
        rest = &tail[digits..];
    }
    let offset = match rest.as_bytes() {
        b"Z" => 0,
        [sign @ (b'+' | b'-'), _, _, b':', _, _] => {
            let at = text.len() - 5;
            let seconds = number(at..at + 2)? * 3600 + number(at + 3..at + 5)? * 60;
            if *sign == b'-' { -seconds } else { seconds }
        }
        _ => return None,
    };
    let seconds = days(year, month, day) * 86_400 + h * 3600 + m * 60 + s - offset;
    Some(Timestamp { seconds, nanos })
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_newtype_struct(TIME, &self.to_string())
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Timestamp, D::Error> {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}

/// `.` and the nanoseconds without trailing zeros; empty for none.
fn fraction(nanos: u32) -> String {
    if nanos == 0 {
        return String::new();
    }
    format!(".{nanos:09}").trim_end_matches('0').to_owned()
}

fn clock(seconds: i64) -> (i64, i64, i64) {
    let of_day = seconds.rem_euclid(86_400);
    (of_day / 3600, of_day / 60 % 60, of_day % 60)
}

/// Year, month and day of a day number since the epoch, in the proleptic Gregorian calendar: years begin in March, so
/// that the leap day is the last of its year and 400 of them make an era of 146,097 days.
fn civil(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let of_era = shifted.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let march_month = if month > 2 { month - 3 } else { month + 9 };
    let of_year = (153 * march_month + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats() {
        let t = Timestamp::from_unix(Duration::new(1_795_164_803, 870_948_071));
        assert_eq!(t.to_string(), "2026-11-20T08:53:23.870948071Z");
        assert_eq!(t.go_text(), "2026-11-20 08:53:23.870948071 +0000 UTC");
        assert_eq!(t.slashes(), "2026/11/20 08:53:23");
        assert_eq!(Timestamp::default().to_string(), "0001-01-01T00:00:00Z");
        assert!(Timestamp::default().is_zero());
        let short = Timestamp::from_unix(Duration::new(951_782_400, 500_000_000));
        assert_eq!(short.to_string(), "2000-02-29T00:00:00.5Z");
    }

    #[test]
    fn parses_what_it_prints() {
        for text in [
            "0001-01-01T00:00:00Z",
            "1970-01-01T00:00:00Z",
            "2000-02-29T23:59:59.5Z",
            "2026-11-20T09:05:22.80778934Z",
            "2100-03-01T00:00:00.000000001Z",
        ] {
            assert_eq!(text.parse::<Timestamp>().unwrap().to_string(), text);
        }
        let east: Timestamp = "2026-11-20T10:05:22+01:00".parse().unwrap();
        assert_eq!(east.to_string(), "2026-11-20T09:05:22Z");
        let west: Timestamp = "2026-11-20T08:35:22-00:30".parse().unwrap();
        assert_eq!(west, east);
        for bad in ["", "2026-11-20", "2026-13-20T00:00:00Z", "2026-11-20T00:00:00", "2026-11-20T00:00:00.Z"]
        {
            assert!(bad.parse::<Timestamp>().is_err(), "{bad}");
        }
    }

    #[test]
    fn calendar_conversions_are_inverse() {
        for day in -150_000..150_000 {
            let (y, m, d) = civil(day);
            assert_eq!(days(y, m, d), day);
        }
    }
}
