"""What `import semla_ros` offers: images in, masks out, with the adapters that fit the scene and why they were taken.

    from semla_ros import Pipeline
    pipeline = Pipeline("semla-tiny")
    result = pipeline("photo.jpg")
    print(result)
    result.save("out")

A thin layer over the same pipeline that the node runs.
"""
