from rllib_weighted.suggest import nearest


def test_nearest():
    assert nearest("sofmax", ["softmax", "rank"]) == "; did you mean 'softmax'?"
    assert nearest("Top_K", ["top_k", "rank"]) == "; did you mean 'top_k'?"
    assert nearest("zzz", ["softmax", "rank"]) == ""
    assert nearest(3, ["softmax"]) == ""
