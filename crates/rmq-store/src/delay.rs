//! The table of delay levels. A message in `SCHEDULE_TOPIC_XXXX` has, in its consume queue, the time
//! at which it is due in place of the tags code, so the table is a part of the store.

/// Delay per level in milliseconds, level 1 first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DelayLevels(Vec<u64>);

/// Why a `messageDelayLevel` is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("messageDelayLevel: level {level} is {text:?}, not a number followed by s, m, h or d")]
pub struct DelayLevelError {
    /// 1-based.
    pub level: usize,
    pub text: String,
}

impl DelayLevels {
    /// Java's default of `messageDelayLevel` (`MessageStoreConfig`, 4.9.8).
    pub const DEFAULT: &str = "1s 5s 10s 30s 1m 2m 3m 4m 5m 6m 7m 8m 9m 10m 20m 30m 1h 2h";

    /// Reads the value of `messageDelayLevel`: numbers with a unit (s, m, h, d), separated by spaces.
    ///
    /// # Errors
    /// Names the first level that is not such a number.
    pub fn parse(text: &str) -> Result<DelayLevels, DelayLevelError> {
        let delay = |(index, word): (usize, &str)| {
            delay_ms(word).ok_or_else(|| DelayLevelError {
                level: index + 1,
                text: word.to_owned(),
            })
        };
        text.split_whitespace()
            .enumerate()
            .map(delay)
            .collect::<Result<_, _>>()
            .map(DelayLevels)
    }

    /// Number of levels, which is the number of queues that are used.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// Delay of a 1-based level in milliseconds; a level above the last one counts as the last one,
    /// and none is 0 or below.
    pub fn delay_ms(&self, level: i64) -> Option<u64> {
        let index = usize::try_from(level.checked_sub(1)?).ok()?;
        self.0.get(index).or_else(|| self.0.last()).copied()
    }

    /// When a message stored at `store_timestamp` with the property `DELAY` = `level` is due, in
    /// milliseconds, as Java's `ScheduleMessageService.computeDeliverTimestamp`. `None` if the level
    /// means no delay.
    pub(crate) fn due(&self, level: &str, store_timestamp: i64) -> Option<i64> {
        let delay = self.delay_ms(level.parse().ok()?)?;
        Some(store_timestamp.saturating_add_unsigned(delay))
    }
}

/// From delays in milliseconds, level 1 first.
impl FromIterator<u64> for DelayLevels {
    fn from_iter<I: IntoIterator<Item = u64>>(delays_ms: I) -> Self {
        DelayLevels(delays_ms.into_iter().collect())
    }
}

impl Default for DelayLevels {
    fn default() -> Self {
        DelayLevels::parse(DelayLevels::DEFAULT).expect("the default is well-formed")
    }
}

fn delay_ms(word: &str) -> Option<u64> {
    let unit_at = word
        .len()
        .checked_sub(1)
        .filter(|at| word.is_char_boundary(*at))?;
    let (number, unit) = word.split_at(unit_at);
    let unit_ms: u64 = match unit {
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(unit_ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_has_eighteen_levels() {
        let levels = DelayLevels::default();
        assert_eq!(levels.count(), 18);
        assert_eq!(levels.delay_ms(1), Some(1000));
        assert_eq!(levels.delay_ms(5), Some(60_000));
        assert_eq!(levels.delay_ms(18), Some(7_200_000));
    }

    #[test]
    fn levels_beyond_the_last_are_the_last() {
        let levels = DelayLevels::parse("1s 3650d").unwrap();
        assert_eq!(levels.delay_ms(99), Some(3650 * 86_400_000));
        assert_eq!(levels.delay_ms(0), None);
        assert_eq!(levels.delay_ms(-1), None);
        assert_eq!(levels.due("2", 5), Some(3650 * 86_400_000 + 5));
        assert_eq!(levels.due("0", 5), None);
        assert_eq!(levels.due("x", 5), None);
        assert_eq!(levels.due("1", i64::MAX), Some(i64::MAX));
    }

    #[test]
    fn bad_levels_are_named() {
        let error = DelayLevels::parse("1s 5").unwrap_err();
        assert_eq!(
            error,
            DelayLevelError {
                level: 2,
                text: "5".to_owned()
            }
        );
        for text in [
            "é",
            "s",
            "-1s",
            "1x",
            "99999999999999999999s",
            "9999999999999999999d",
        ] {
            assert!(DelayLevels::parse(text).is_err(), "{text}");
        }
    }
}
