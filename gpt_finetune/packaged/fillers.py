"""What templates of commands leave to each house: its rooms and things, and what people say, list and search for."""

from __future__ import annotations

from collections.abc import Mapping

# By language, then by the name of the list. A thing is called `name`; which ones fit says the kind that it must be of.
FILLERS: dict[str, Mapping[str, tuple[str, ...]]] = {
    "en": {
        "area": ("living room", "kitchen", "bedroom", "bathroom", "office", "hallway", "garage", "garden", "nursery"),
        "floor": ("ground floor", "first floor", "second floor", "basement", "attic", "upstairs"),
        "zone": ("home", "work", "school", "the gym", "the station"),
        "message": ("dinner is ready", "it is time to leave", "the guests are here", "good night everyone"),
        "search_query": ("jazz for a rainy day", "the news", "some piano music", "a story about whales"),
        "shopping_list_item": ("milk", "brown bread", "six eggs", "washing powder", "apples", "coffee beans"),
        "todo_list_item": ("call the plumber", "water the plants", "pay the rent", "book a table", "clean the oven"),
        "timer_name": ("pizza", "laundry", "tea", "homework", "nap"),
        "timer_command": ("open the blinds", "turn off the heater", "lock the front door", "play the news"),
    },
    "zh": {
        "area": ("客厅", "厨房", "卧室", "浴室", "书房", "走廊", "车库", "花园", "儿童房"),
        "floor": ("一楼", "二楼", "三楼", "地下室", "阁楼", "楼上"),
        "zone": ("家", "公司", "学校", "健身房", "车站"),
        "message": ("晚饭做好了", "该出门了", "客人到了", "大家晚安"),
        "shopping_list_item": ("牛奶", "全麦面包", "六个鸡蛋", "洗衣粉", "苹果", "咖啡豆"),
        "todo_list_item": ("给水管工打电话", "浇花", "交房租", "订餐厅", "清洗烤箱"),
        "timer_name": ("披萨", "洗衣", "泡茶", "写作业", "午睡"),
        "timer_command": ("打开百叶窗", "关掉暖气", "锁上大门", "播放新闻"),
    },
}

# Names of things by language and kind; the kinds are those that templates ask for.
THINGS: dict[str, Mapping[str, tuple[str, ...]]] = {
    "en": {
        "binary_sensor": ("front window", "smoke detector", "motion sensor"),
        "button": ("doorbell", "restart button"),
        "climate": ("thermostat", "heat pump", "air conditioner"),
        "cover": ("left curtain", "garage door", "roller blind"),
        "fan": ("ceiling fan", "desk fan"),
        "input_boolean": ("guest mode", "holiday mode"),
        "input_button": ("panic button", "reset button"),
        "lawn_mower": ("lawn mower", "robot mower"),
        "light": ("bedside lamp", "reading light", "chandelier"),
        "lock": ("front door", "back door", "garden gate"),
        "media_player": ("television", "kitchen radio", "stereo"),
        "person": ("Alice", "Robert", "Grandma"),
        "scene": ("movie night", "romantic dinner"),
        "script": ("morning routine", "bedtime story"),
        "sensor": ("outdoor temperature", "water meter"),
        "switch": ("coffee machine", "heater", "garden pump"),
        "todo": ("chores", "packing", "weekend"),
        "vacuum": ("robot vacuum", "downstairs cleaner"),
        "valve": ("water valve", "sprinkler valve"),
        "weather": ("Lisbon", "New York", "the coast"),
    },
    "zh": {
        "binary_sensor": ("前窗", "烟雾报警器", "人体传感器"),
        "button": ("门铃", "重启按钮"),
        "climate": ("温控器", "热泵", "空调"),
        "cover": ("左边窗帘", "车库门", "卷帘"),
        "fan": ("吊扇", "台式风扇"),
        "input_boolean": ("访客模式", "度假模式"),
        "input_button": ("紧急按钮", "复位按钮"),
        "lawn_mower": ("割草机", "割草机器人"),
        "light": ("床头灯", "阅读灯", "水晶灯"),
        "lock": ("前门", "后门", "花园门"),
        "media_player": ("电视", "厨房收音机", "音响"),
        "person": ("小明", "李华", "奶奶"),
        "scene": ("观影模式", "浪漫晚餐"),
        "script": ("早晨流程", "睡前故事"),
        "sensor": ("室外温度", "水表"),
        "switch": ("咖啡机", "暖气", "花园水泵"),
        "todo": ("家务", "行李", "周末"),
        "vacuum": ("扫地机器人", "楼下吸尘器"),
        "valve": ("水阀", "喷灌阀"),
        "weather": ("上海", "北京", "海边"),
    },
}
