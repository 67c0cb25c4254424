CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
CREATE DOMAIN percentage AS int CHECK (VALUE BETWEEN 0 AND 100);
CREATE TYPE pair AS (number int, word text);
CREATE TABLE everything (id int PRIMARY KEY, t text, m mood, p percentage, c pair, a numeric[], j jsonb, r tstzrange,
                         b bytea, at timestamptz);
INSERT INTO everything VALUES
    (1, 'one', 'ok', 50, (1, 'one'), '{1.5,NULL}', '{"a": [1]}', '[2020-01-01 00:00+00,)', '\x00ff', '2020-01-01 00:00+00'),
    (2, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
GRANT ALL ON everything TO weir_upstream;
