"""From preference pairs to judgments: what the two training sets are made of."""
