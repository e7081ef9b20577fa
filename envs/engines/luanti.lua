-- Puts the player where farworld asks for, and keeps everything off the screen that is not the world.
-- farworld writes the file `ask` into the world's folder, and reads the answer from the file `answer`.

local folder = minetest.get_worldpath()
local asked = ""

minetest.send_join_message = function() end
minetest.send_leave_message = function() end
minetest.get_server_status = function() return "" end

minetest.register_on_joinplayer(function(player)
  player:hud_set_flags({
    hotbar = false, healthbar = false, breathbar = false, crosshair = false, wielditem = false,
    minimap = false, minimap_radar = false, basic_debug = false, chat = false,
  })
end)

local function answer(id, text)
  minetest.safe_file_write(folder .. "/answer", id .. " " .. text)
end

-- The height to stand at, on solid ground and in air; nil in water or if nothing is loaded there.
local function ground(x, y, z)
  for height = y + 24, y - 24, -1 do
    local node = minetest.registered_nodes[minetest.get_node({x = x, y = height, z = z}).name] or {}
    if node.liquidtype and node.liquidtype ~= "none" then return nil end
    if node.walkable then return height + 1 end
  end
end

local function stand(id, player, x, y, z, yaw, daytime)
  minetest.set_timeofday(daytime)
  player:set_velocity(vector.multiply(player:get_velocity(), -1))
  player:set_pos({x = x, y = (ground(x, y, z) or y) - 0.5, z = z})
  player:set_look_horizontal(yaw)
  player:set_look_vertical(0)
  player:set_hp(20)
  player:get_inventory():set_list("main", {ItemStack("default:cobble 99")})
  answer(id, "there")
end

-- The nearest column on a square spiral where the map generator says that one can stand.
local function land(x, z)
  local dx, dz, step_x, step_z = 0, 0, 0, -1
  for _ = 1, 400 do
    local y = minetest.get_spawn_level(x + 24 * dx, z + 24 * dz)
    if y then return x + 24 * dx, y, z + 24 * dz end
    if dx == dz or (dx < 0 and dx == -dz) or (dx > 0 and dx == 1 - dz) then
      step_x, step_z = -step_z, step_x
    end
    dx, dz = dx + step_x, dz + step_z
  end
  return x, 20, z
end

local function place(id, player, x, z, yaw, daytime)
  local y
  x, y, z = land(x, z)
  local reach = {x = 48, y = 32, z = 48}
  local here = {x = x, y = y, z = z}
  minetest.emerge_area(vector.subtract(here, reach), vector.add(here, reach), function(_, _, remaining)
    if remaining == 0 then stand(id, player, x, y, z, yaw, daytime) end
  end)
end

minetest.register_globalstep(function()
  local player = minetest.get_connected_players()[1]
  local file = player and io.open(folder .. "/ask", "r")
  if not file then return end
  local text = file:read("*a")
  file:close()
  if text == asked then return end
  asked = text
  local words = {}
  for word in text:gmatch("%S+") do table.insert(words, word) end
  if words[2] == "look" then
    answer(words[1], string.format("%.6f %.6f", player:get_look_horizontal(), player:get_look_vertical()))
  elseif words[2] == "place" then
    place(words[1], player, tonumber(words[3]), tonumber(words[4]), tonumber(words[5]), tonumber(words[6]))
  end
end)
