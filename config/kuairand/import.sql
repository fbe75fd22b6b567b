-- KuaiRand-Pure (Gao et al. 2022, CC BY-SA 4.0): impressions with outcomes as canonical tables.
-- Input: impressions_2022-04-25_04-30.parquet, user_sequences_to_04-24.parquet,
-- user_features_pure.csv, video_features_basic_pure.csv.
-- All users are of one zone; its clock is written in the place of UTC, so that a day of the
-- pipeline is a day of the data set and an hour is an hour of its users.

-- The label is is_click. Every other outcome of the impression (play time, likes, follows, ...)
-- is left out here, and the derived columns with it; duration_ms is the item's video_duration.
-- 2,979 impressions stand twice in the data, word for word; they are kept, numbered.
CREATE VIEW shown AS
SELECT
  CAST(user_id AS VARCHAR) || '-' || CAST(video_id AS VARCHAR) || '-' || CAST(time_ms AS VARCHAR)
    || '-' || CAST(row_number() OVER (PARTITION BY user_id, video_id, time_ms ORDER BY is_click, tab)
                   AS VARCHAR) AS event_id,
  user_id, video_id, time_ms, is_click, tab
FROM impressions_2022_04_25_04_30;

CREATE VIEW events AS
SELECT
  event_id,
  CAST(user_id AS VARCHAR) AS user_id,
  CAST(video_id AS VARCHAR) AS item_id,
  'impression' AS event,
  to_timestamp_millis(time_ms + {{utc_offset_hours=8}} * 3600000) AS timestamp,
  CAST(is_click AS DOUBLE) AS label,
  event_id AS request_id,
  CAST(tab AS VARCHAR) AS context_tab
FROM shown;

-- What stands in the sequences, a row a place.
CREATE VIEW places AS
SELECT unnest(watch_seq) AS video_id, 1 AS shown, 0 AS liked, 0 AS long_watched FROM user_sequences_to_04_24
UNION ALL
SELECT unnest(like_seq), 0, 1, 0 FROM user_sequences_to_04_24
UNION ALL
SELECT unnest(long_watch_seq), 0, 0, 1 FROM user_sequences_to_04_24;

CREATE VIEW past AS
SELECT video_id, sum(shown) AS past_shown, sum(liked) AS past_liked, sum(long_watched) AS past_long_watched
FROM places GROUP BY video_id;

CREATE VIEW items AS
SELECT
  CAST(v.video_id AS VARCHAR) AS item_id,
  split_part(CAST(tag AS VARCHAR), ',', 1) AS category,
  CAST(upload_dt AS DATE) AS created_at,
  TRUE AS in_stock,
  CAST(author_id AS VARCHAR) AS author_id,
  CAST(author_id AS VARCHAR) AS brand,
  video_type,
  upload_type,
  CAST(tag AS VARCHAR) AS tags,
  video_duration / 1000.0 AS duration_seconds,
  server_width,
  server_height,
  CAST(CAST(music_id AS BIGINT) AS VARCHAR) AS music_id,
  CAST(CAST(music_type AS BIGINT) AS VARCHAR) AS music_type,
  p.past_shown, p.past_liked, p.past_long_watched
FROM video_features_basic_pure v
LEFT JOIN past p ON p.video_id = v.video_id;

-- Sequences up to 24 April as counts; the videos themselves are in histories.
CREATE VIEW users AS
SELECT
  CAST(u.user_id AS VARCHAR) AS user_id,
  u.user_active_degree,
  u.is_lowactive_period,
  u.is_live_streamer,
  u.is_video_author,
  u.follow_user_num,
  u.follow_user_num_range,
  u.fans_user_num,
  u.fans_user_num_range,
  u.friend_user_num,
  u.friend_user_num_range,
  u.register_days,
  u.register_days_range,
  u.onehot_feat0, u.onehot_feat1, u.onehot_feat2, u.onehot_feat3, u.onehot_feat4, u.onehot_feat5,
  u.onehot_feat6, u.onehot_feat7, u.onehot_feat8, u.onehot_feat9, u.onehot_feat10,
  u.onehot_feat11, u.onehot_feat12, u.onehot_feat13, u.onehot_feat14, u.onehot_feat15,
  u.onehot_feat16, u.onehot_feat17,
  s.history_len AS past_length,
  CAST(array_length(s.watch_seq) AS BIGINT) AS past_shown,
  CAST(array_length(s.like_seq) AS BIGINT) AS past_liked,
  CAST(array_length(s.long_watch_seq) AS BIGINT) AS past_long_watched,
  (s.last_time_ms + {{utc_offset_hours=8}} * 3600000) / 86400000.0 AS past_last_day
FROM user_features_pure u
LEFT JOIN user_sequences_to_04_24 s ON s.user_id = u.user_id;

CREATE VIEW histories AS
SELECT user_id, event, item_ids, as_of FROM (
  SELECT CAST(user_id AS VARCHAR) AS user_id, 'impression' AS event, watch_seq AS item_ids,
    to_timestamp_millis(last_time_ms + {{utc_offset_hours=8}} * 3600000) AS as_of
  FROM user_sequences_to_04_24
  UNION ALL
  SELECT CAST(user_id AS VARCHAR), 'like', like_seq,
    to_timestamp_millis(last_time_ms + {{utc_offset_hours=8}} * 3600000)
  FROM user_sequences_to_04_24
  UNION ALL
  SELECT CAST(user_id AS VARCHAR), 'click', long_watch_seq,
    to_timestamp_millis(last_time_ms + {{utc_offset_hours=8}} * 3600000)
  FROM user_sequences_to_04_24
)
WHERE array_length(item_ids) > 0;
